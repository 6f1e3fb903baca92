"""Make docs/reproduction.md, or such a page, from the equations and the combined result files; see figures.sh."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

from mpiconv.data.datasets import LabelledPictures, open_data
from mpiconv.data.pictures import read_picture
from mpiconv.errors import MpiconvError
from mpiconv.files import replaced
from mpiconv.models import Info, load_model
from mpiconv.study.reproduction import write_page
from mpiconv.study.robustness import lost_parts

PICTURE = Path(__file__).parent / "pictures" / "portrait.jpg"
COLOURS = 128


def shrink(folder: Path) -> None:
    """Store the figures with a palette: a third of their size."""
    for path in folder.glob("figure*.png"):
        with Image.open(path) as image:
            if image.mode != "P":
                smaller = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
                with replaced(path) as file:
                    smaller.save(file, "PNG", optimize=True)


def main() -> int:
    """Parse the command line and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of figure8.h5 and figure9.h5")
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"), help="folder of the figures")
    parser.add_argument("--out", type=Path, default=Path("docs/reproduction.md"), help="the page")
    parser.add_argument("--form", default="full", help="which form of figures.sh measured")
    arguments = parser.parse_args()
    try:
        picture = read_picture(PICTURE, Info("vgg11", (3, 227, 227)))[None]
        shrink(arguments.figures)
        model = load_model("digits")
        data = open_data("digits", "held-out")
        lost = lost_parts(model, LabelledPictures(data, model.info, data.about.classes))
        write_page(arguments.results, arguments.figures, arguments.out, picture, f" --{arguments.form}", lost)
    except MpiconvError as error:
        print(f"reproduction: error: {error}", file=sys.stderr)
        return error.exit_status
    print(f"page     {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
