"""The work behind ``mpiconv run``: join, prepare, infer, check, write, print."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from mpiconv.cli import auto
from mpiconv.cli.crowding import crowded
from mpiconv.cli.gain import gain_over_one
from mpiconv.cli.kept import begin_with_kept, devices_here
from mpiconv.cli.networks import build_graph
from mpiconv.cli.notes import note
from mpiconv.cli.objectives import objective_of
from mpiconv.cli.options import settings_of
from mpiconv.cli.place import Place, join_job
from mpiconv.cli.readiness import check_readiness, with_backups_where_there_is_room, with_spare_ranks
from mpiconv.cli.running import Running, predictions
from mpiconv.cli.saving import Results, check_outputs, open_answers
from mpiconv.cli.sending import sending_bar
from mpiconv.cli.setup import Job, prepare
from mpiconv.cli.startup import Startup
from mpiconv.cli.surviving import Surviving, options_for
from mpiconv.cli.tables import latency, ranks_at_work, restarts, summary, throughput_fps, weights_moved, where_time_went
from mpiconv.errors import MpiconvError, UsageError
from mpiconv.job import launcher
from mpiconv.job.control import on_root
from mpiconv.job.leaving import without_lost
from mpiconv.job.lifeline import Stage
from mpiconv.job.stopping import Stopping
from mpiconv.job.team import Team
from mpiconv.job.world import leave
from mpiconv.measure import Record
from mpiconv.measure.answers import AnswersFile
from mpiconv.measure.results import write_results
from mpiconv.partition.plan_text import idle
from mpiconv.planner.cluster import Cluster
from mpiconv.runtime.building import distribute, join
from mpiconv.runtime.net import DistributedNet
from mpiconv.runtime.recovery import Anew
from mpiconv.runtime.settings import Settings
from mpiconv.runtime.weights import readers_of
from mpiconv.signals import Caught
from mpiconv.study.answers import accuracy
from mpiconv.study.checking import compared, raise_if_different
from mpiconv.text import to_json
from mpiconv.words import counted

UNLIKELY_POWER_W = 100.0


def infer(arguments: argparse.Namespace, caught: Caught) -> int:
    """Infer, measure, check, write, print; collective. Exit status 0, or 1 if the check fails.

    A signal that was caught on any rank ends the repeats early; all that was measured until then counts. Where ranks
    are lost, and the MPI job outlives that, those who are left go on.

    Raises MpiconvError on every rank if there was none by then.
    """
    startup = Startup()
    place, stage = join_job(arguments), Stage.START
    startup.done("imports and MPI")
    while True:
        team = place.team
        try:
            status = _infer(arguments, caught, startup, place, stage)
            break
        except BaseException as error:
            if isinstance(error, Anew):
                left, stage = error.team, Stage.START
            elif team.watch.explains(error):
                left, stage = without_lost(team, Stage.START)
            else:
                raise
            lost = len(place.living) - left.size
            place = place.of(left)
            if left.rank == 0:
                launcher.tell(
                    f"mpiconv: note: lost {counted(lost, 'rank')} at the start: begins again with {left.size}"
                )
            options_for(arguments, place.kept, team.size)
    leave(team, status)
    return status


def _infer(arguments: argparse.Namespace, caught: Caught, startup: Startup, place: Place, stage: Stage) -> int:
    """The same on those who are there; from ``stage`` on, which rank 0 is at."""
    team = place.team
    if stage is Stage.NETWORK:
        caught.at_once = False
        join(team, Settings(pace=place.pace)).follow()
        return 0
    _check_injected(arguments, team.size)
    cluster = auto.find_cluster(arguments, team, place.launched, place.pace, lambda: build_graph(arguments))
    if cluster is not None and team.size > 1:
        startup.done("probe")

    devices = devices_here(arguments, team, place.pace) if cluster is not None else []
    ready = partial(_ready, arguments, team.size, cluster, devices)
    job, answers = on_root(team, ready, what="loading the network and the pictures") or (None, None)
    crowd = crowded(arguments, team)
    if job is not None:
        _notes(arguments, job, crowd)
    settings = _with_file(arguments, settings_of(arguments, place.pace), team)
    stopping = Stopping(team, caught)
    startup.done("model, plan and pictures")
    if job is None or answers is None:
        net = distribute(None, None, team, settings)
        caught.at_once = False
        net.follow(stopping.look)
        return 0
    settings = with_backups_where_there_is_room(arguments, job, settings)
    surviving = Surviving(arguments, job)
    net = distribute(job.model, job.plan, team, settings, sending_bar(quiet=arguments.quiet), surviving)
    startup.took("tracing and self-check" if settings.selfcheck else "tracing", net.tracing_s)
    startup.done("weights to the ranks")
    caught.at_once = False
    running = Running(arguments, surviving, net, stopping, startup, len(answers.kept) // job.plan.batch)
    results = _results(running, net, startup, answers)
    return _lead(running, net, stopping, startup, results)


def _lead(running: Running, net: DistributedNet, stopping: Stopping, startup: Startup, results: Results) -> int:
    """What rank 0 does once the network is ready, while the others follow."""
    arguments = running.arguments
    running.run_all(results)
    ended_early = stopping.ended
    if running.measured < 1 and not running.meanwhile.events:
        raise MpiconvError(
            f"ended by {ended_early} before the first repeat: nothing was measured and no results are written"
        )
    record = running.collect()
    not_finite = net.first_not_finite()
    gain = None if ended_early else gain_over_one(arguments, running.job, record, net)
    net.dismiss()
    stopping.close()
    if ended_early:
        _tell_early(ended_early, running)
    return _finish(running, record, net, ended_early, startup, results, gain, not_finite)


def _ready(
    arguments: argparse.Namespace, ranks: int, cluster: Cluster | None, devices: Sequence[Mapping[str, Any]]
) -> tuple[Job, AnswersFile]:
    """What rank 0 has to have before the others join in."""
    check_outputs(arguments)
    check_readiness(arguments, ranks)
    active = ranks - arguments.spares
    among = cluster and cluster.in_order(range(active))
    job = begin_with_kept(arguments, prepare(arguments, active, among), devices[:active])
    job = with_spare_ranks(job, arguments.spares, cluster)
    return job, open_answers(arguments, job)


def _check_injected(arguments: argparse.Namespace, ranks: int) -> None:
    """Raise UsageError where something is to happen to a rank that is not there."""
    for each in arguments.inject:
        if each.rank >= ranks:
            raise UsageError(f"--inject {each.kind}: there is no rank {each.rank}, ranks 0 to {ranks - 1} are running")


def _with_file(arguments: argparse.Namespace, settings: Settings, team: Team) -> Settings:
    """The settings with the ranks that read their weights from the file, where that is asked for. Collective.

    Raises UsageError where there is no file that slices can be read from.
    """
    if arguments.weights_on == "root":
        return settings
    path = arguments.weights or ""
    if not path.endswith(".safetensors"):
        raise UsageError(f"--weights-on every wants --weights FILE.safetensors, not {path or 'none'}")
    readers = readers_of(team, path)
    without = sorted(set(range(1, team.size)) - set(readers))
    if team.rank == 0 and without and not arguments.quiet:
        ranks = ", ".join(map(str, without))
        note(f"sent their weights, having no {path}: rank {ranks}")
    return replace(settings, weights_file=path, readers=readers)


def _results(running: Running, net: DistributedNet, startup: Startup, answers: AnswersFile) -> Results:
    """The files that are to be written."""
    arguments = running.arguments

    def write(record: Record, ended_early: str, check: dict[str, Any] | None, about: dict[str, Any]) -> None:
        found = _attributes(arguments, running.job, check, net, record, ended_early) | about
        if running.tried:
            found["auto_tried"] = to_json(auto.as_list(running.tried))
        if running.meanwhile.reported:
            found["events"] = to_json(running.meanwhile.events)
            found["measured_from"] = running.done - net.reports.measured
        if arguments.restarted is not None:
            found["restarts"] = arguments.restarted
        found["startup_s"] = startup.seconds
        predicted = running.job.predicted
        stamps_s = None if predicted is None else predicted.stamps_s
        write_results(arguments.output, record, running.job.profile, found, stamps_s)

    return Results(arguments, write, answers)


def _tell_early(name: str, running: Running) -> None:
    """Say on stderr, also where notes are not wanted, that there is less than was asked for."""
    arguments, job, done = running.arguments, running.job, running.done
    missed = len(job.pictures) - min((running.first + done) * job.plan.batch, len(job.pictures))
    files = bool(arguments.image or arguments.data)
    pictures = f"; {missed} of {len(job.pictures)} pictures have no answer" if missed and files else ""
    launcher.tell(f"mpiconv: note: ended by {name} after {done} of {running.frames} repeats{pictures}")


def _finish(
    running: Running,
    record: Record,
    net: DistributedNet,
    ended_early: str,
    startup: Startup,
    results: Results,
    gain: dict[str, Any] | None,
    not_finite: str,
) -> int:
    """What rank 0 does with the outputs and measurements of all ranks."""
    arguments, job, outputs = running.arguments, running.job, running.outputs
    results.save(record, ended_early)  # before the rest, which may fail or be ended
    accepted = arguments.wire_error or 0.0
    check = compared(job.model, job.plan, running.batch, outputs, net.settings, accepted) if arguments.check else None
    predicted = predictions(running, results.answers.kept)
    right = accuracy(job.pictures, predicted, job.info)
    about = {"data": arguments.data, **right} if right else {}
    if not_finite:
        note(f"the output of {not_finite} is not finite (NaN or infinity), the first of those looked at (--guard)")
        about["not_finite"] = not_finite
    about |= {f"gain_{key}": value for key, value in (gain or {}).items()}
    if check or about:
        results.save(record, ended_early, check, about)
    if ended_early and results.path:
        launcher.tell(f"mpiconv: note: results of {counted(len(record.latency_s), 'repeat')} in {results.path}")
    if arguments.json:
        tried: dict[str, Any] = {"auto": auto.as_list(running.tried)} if running.tried else {}
        if running.meanwhile.reported:
            tried |= {"events": running.meanwhile.events, "measured_from": running.done - running.measured}
        if arguments.restarted is not None:
            tried["restarts"] = arguments.restarted
        print(to_json(_report(job, record, predicted, check, results) | _weights(net) | right | tried | {"gain": gain}))
    else:
        print(summary(job, record, predicted, check, results.paused_s, gain))
        if right:
            print(f"accuracy {right['accuracy']:.2%} of {right['answered']} pictures ({arguments.data})")
        if arguments.restarted is not None:
            print(restarts(arguments.restarted, running.first * job.plan.batch, len(predicted)))
        if running.tried:
            print(auto.verdict(running.tried, job.plan.batch, objective_of(arguments)))
        if not arguments.quiet:
            print(weights_moved(*_weights(net).values()))
            print(where_time_went(record))
            print(ranks_at_work(record))
            _tell_energy(record, job, net.no_meter)
            print(startup)
            if results.path:
                print(f"results  {results.path}")
    sys.stdout.flush()
    results.raise_problem()
    raise_if_different(check)
    return 0


def _tell_energy(record: Record, job: Job, no_meter: str) -> None:
    """One line about energy: by which model, and what was measured."""
    profile, means = job.profile, record.measured_joules[np.isfinite(record.measured_joules)]
    compute, transfer = profile.compute_joules(record).sum(), profile.transfer_joules(record).sum()
    line = (
        f"energy   {compute:.3g} J computing + {transfer:.3g} J transferring per inference, all ranks, "
        f"by the model {profile.name} ({profile.compute_power_w:g} W while computing)"
    )
    if profile.compute_power_w > UNLIKELY_POWER_W:
        line += "; no board draws that much: compare, do not quote"
    if len(means):
        method = next(meter for meter in record.meters if meter)
        line += f"; measured on whole hosts ({method}): {means.sum():.3g} J"
    elif no_meter:
        line += f"; not measured: {no_meter}"
    print(line)


def _attributes(
    arguments: argparse.Namespace,
    job: Job,
    check: dict[str, Any] | None,
    net: DistributedNet,
    record: Record,
    ended_early: str,
) -> dict[str, Any]:
    plan = job.plan
    found = {f"check_{key}": value for key, value in (check or {}).items()}
    return {
        "command_line": shlex.join(["mpiconv", *sys.argv[1:]]),
        "name": arguments.name or "",
        "model": job.info.name,
        "weights": job.info.trained or f"random, seed {arguments.seed}",
        "scheme": job.scheme,
        "shares": list(plan.shares),
        "gather": plan.gather,
        "head": plan.head,
        "weights_on": arguments.weights_on,
        "weight_cache": net.settings.weight_cache,
        **_weights(net),
        "plan": plan.to_json(),
        "input_shape": list(plan.input_shape),
        "batch": plan.batch,
        "repeats": len(record.latency_s),
        "ended_early": ended_early,
        "warmup": arguments.warmup,
        "dilation": arguments.dilation,
        "compute": net.settings.compute,
        "wait": net.settings.wait,
        "wire": plan.wire,
        "same_host": "shared memory" if net.sharing else "messages",
        "in_flight": net.settings.in_flight,
        "overlap": ",".join(net.overlapped) or "off",
        "emulated": "yes" if max(arguments.pace) > 1 or arguments.dilation > 1 or arguments.inject else "no",
        "mpi_library": MPI.Get_library_version().strip("\0 \n"),
        "torch_version": str(torch.__version__),
        **found,
    }


def _report(job: Job, record: Record, predicted: list[Any], check: Any, results: Results) -> dict[str, Any]:
    """The object that --json prints."""
    return {
        "model": job.info.name,
        "scheme": job.scheme,
        "ranks": job.plan.ranks,
        "batch": job.plan.batch,
        "input_shape": list(job.plan.input_shape),
        "latency_s": latency(record),
        "predicted_latency_s": None if job.predicted is None else job.predicted.latency_s,
        "throughput_fps": throughput_fps(record, job.plan.batch, results.paused_s),
        "bytes_sent": record.bytes_sent.sum(axis=1).tolist(),
        "bytes_received": record.bytes_received.sum(axis=1).tolist(),
        "weight_bytes": record.weight_bytes.tolist(),
        "peak_rss_bytes": record.peak_rss_bytes.tolist(),
        "compute_energy_j": job.profile.compute_joules(record).tolist(),
        "transfer_energy_j": job.profile.transfer_joules(record).tolist(),
        "predictions": [{key: line[key] for key in ("image", "label", "score")} for line in predicted],
        "check": check,
        "output": results.path,
    }


def _weights(net: DistributedNet) -> dict[str, list[int]]:
    """B of weights that came to each rank in messages, and that it read from its own disk."""
    received, stored = net.weights_received_bytes, net.weights_stored_bytes
    return {"weights_received_bytes": list(received), "weights_stored_bytes": list(stored)}


def _notes(arguments: argparse.Namespace, job: Job, crowd: list[str]) -> None:
    """Say once, on stderr, what the user may not expect."""
    if arguments.quiet:
        return
    notes = crowd[:]
    if job.plan.ranks == 1:
        notes.append("running on one rank; start more with: mpirun -n 2 mpiconv run ... (README: across devices)")
        if arguments.rebalance:
            notes.append("--rebalance has nothing to do on one rank")
    units = len(job.plan.graph.body)
    for rank, names in idle(job.plan).items() if not job.trials else ():
        where = "any unit" if len(names) == units else ", ".join(names)
        notes.append(f"rank {rank} has nothing to compute in {where}")
    if not job.info.trained:
        notes.append(f"the weights of {job.info.name} are random (seed {arguments.seed}): its answers mean nothing")
    for text in notes:
        note(text)
