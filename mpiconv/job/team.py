"""The ranks that work together, and all that they reach each other by: the one owner of communicators."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from mpi4py import MPI

from mpiconv.errors import MpiconvError
from mpiconv.job.lifeline import Lifeline, Stage
from mpiconv.job.lines import Lines
from mpiconv.job.openmpi import survives
from mpiconv.job.progress import Progress
from mpiconv.job.seats import Seat, find_seats
from mpiconv.job.shared_memory import share
from mpiconv.job.waiting import Waiting, meet, wait
from mpiconv.job.watch import Place, Watch

MEETING_TAG = 13


class Team:
    """The ranks of a communicator. It owns what is made from it, and gives all of it back when it is closed.

    ``Team.of`` makes one; ``twin`` and ``part`` make teams from it that share its watch, ``shrink`` and ``left`` one
    that does not.

    Attributes
    ----------
    comm
        Its communicator, which nobody else uses; where ranks of it were lost, the lines between those who are left.
    watch, members
        Looks after the long waits of this rank; the numbers of the team's ranks as it counts them.
    seats
        Where each rank runs.

    Examples
    --------
    >>> with Team.of(MPI.COMM_WORLD) as team:  # on every rank
    ...     names = allgather_json(team, "alexnet" if team.rank == 0 else "")
    """

    def __init__(
        self, comm: MPI.Intracomm | Lines, watch: Watch, members: Sequence[int], seats: Sequence[Seat] = ()
    ) -> None:
        self.comm, self.watch = comm, watch
        self.members, self.seats = tuple(members), tuple(seats)
        self.rank, self.size = comm.rank, comm.size
        self._parts: dict[tuple[int, ...], Team] = {}
        self._made: list[Team] = []
        self._own_watch = False
        self.closed = False

    @classmethod
    def of(cls, comm: MPI.Intracomm | Lines | Team, lifeline: Lifeline | None = None) -> Team:
        """A team of a communicator's ranks, which stays the caller's; of a team its twin. Collective.

        ``lifeline`` is theirs, if they have one already.
        """
        if isinstance(comm, Team):
            return comm.twin()
        blind = cls(comm, Watch(lifeline=lifeline), range(comm.size))
        if lifeline is None and survives() and comm.size > 1:
            lifeline = Lifeline(blind.twin().mpi)
        return cls._formed(blind._duplicate(), blind._duplicate(), lifeline)

    @classmethod
    def _formed(cls, comm: MPI.Intracomm | Lines, messages: MPI.Intracomm | Lines, lifeline: Lifeline | None) -> Team:
        """A team with a watch of its own. Collective."""
        team = cls(comm, Watch(lifeline=lifeline), range(comm.size))
        team.seats = find_seats(team)
        team.watch, team._own_watch = Watch(messages, team.hosts, lifeline), True
        if lifeline is not None:
            lifeline.seats |= dict(zip(lifeline.living, team.seats, strict=True))
        return team

    @classmethod
    def left(cls, lifeline: Lifeline, stage: Stage, limits_s: tuple[float, float] = (0.0, 0.0)) -> tuple[Team, Stage]:
        """Agree with those who are left on who that is; them as a team, and rank 0's stage. On all of them.

        ``limits_s`` are those of its watch.

        Raises
        ------
        MpiconvError
            Rank 0 is lost; or, as Refused, this rank counts as lost.
        """
        while True:
            stage = lifeline.agree(stage)
            lines = Lines.after(lifeline.comm, lifeline.places, lifeline.losses)
            try:
                team = cls._formed(lines, lines.twin(), lifeline)
            except BaseException as error:
                if not lifeline.explains(error):
                    raise
                lifeline.kept.append(error)
            else:
                team.watch.limit_s, team.watch.idle_limit_s = limits_s
                return team, stage

    def without_lost(self, stage: Stage) -> tuple[Team, Stage]:
        """The same for this team, of which some are lost."""
        if self.watch.lifeline is None:
            raise MpiconvError("this MPI job does not outlive a rank: mpirun --with-ft ulfm does, where it is Open MPI")
        return Team.left(self.watch.lifeline, stage, (self.watch.limit_s, self.watch.idle_limit_s))

    @property
    def whole(self) -> bool:
        """Whether nobody was lost before it was made."""
        return not isinstance(self.comm, Lines)

    @property
    def mpi(self) -> MPI.Intracomm:
        """Its communicator, for what MPI alone can do. Raises MpiconvError where ranks of it were lost."""
        if isinstance(self.comm, Lines):
            raise MpiconvError("ranks were lost, and this needs all that were started")
        return self.comm

    @property
    def hosts(self) -> tuple[str, ...]:
        """The name of every rank's host."""
        return tuple(seat.host for seat in self.seats)

    @property
    def crowded(self) -> bool:
        """Whether some ranks that see one memory are more than their cores."""
        memories = {seat.memory for seat in self.seats}
        there = [[seat.cores for seat in self.seats if seat.memory == memory] for memory in memories]
        return any(len({core for cores in ranks for core in cores}) < len(ranks) for ranks in there)

    @property
    def neighbours(self) -> tuple[int, ...]:
        """The ranks that can share memory with this one, itself included."""
        return tuple(rank for rank in range(self.size) if rank == self.rank or self.together((rank, self.rank)))

    def together(self, ranks: Sequence[int]) -> bool:
        """Whether these ranks can share memory with each other."""
        seats = [self.seats[rank] for rank in ranks]
        return all(seat.ordered and seat.memory == seats[0].memory for seat in seats)

    def twin(self) -> Team:
        """The same ranks with a communicator of their own. Collective."""
        self._made.append(Team(self._duplicate(), self.watch, self.members, self.seats))
        return self._made[-1]

    def part(self, ranks: Sequence[int]) -> Team:
        """Some of its ranks as a team, made once all of them are there, and once only. Collective over them."""
        chosen = tuple(ranks)
        if chosen not in self._parts:
            self._meet(chosen)
            members, seats = [self.members[rank] for rank in chosen], [self.seats[rank] for rank in chosen]
            self._parts[chosen] = Team(self._grouped(chosen), self.watch, members, seats)
        return self._parts[chosen]

    def shrink(self, survivors: Sequence[int]) -> Team:
        """Some ranks, in this order, as a team that needs nothing from the others. Collective over them."""
        lifeline, chosen = self.watch.lifeline, self._grouped(tuple(survivors))
        if lifeline is not None:
            lifeline.number(survivors)
        made = Team.of(chosen, lifeline)
        chosen.Free()
        made.watch.limit_s, made.watch.idle_limit_s = self.watch.limit_s, self.watch.idle_limit_s
        return made

    def share(self, size: int) -> memoryview | None:
        """``size`` B of zeros that all its ranks see; None on all where it cannot be had. Collective."""
        return share(self, size)

    def progress(self, *, wanted: bool) -> Progress:
        """What lets messages move while this rank computes, while entered."""
        return Progress(wanted=wanted)

    def waiting(self, mode: str) -> Waiting:
        """What waits for messages and flags: ``spin``, ``sleep`` or ``patient``."""
        return Waiting(mode, self.watch)

    def close(self) -> None:
        """Give back all communicators. Collective, or nothing where it was done."""
        if self.closed:
            return
        self.closed = True
        if self.watch.lifeline is not None and self.watch.lifeline.losses:
            return  # MPI may wait for those who are lost
        for made in (*self._parts.values(), *self._made):
            made.close()
        self._parts, self._made = {}, []
        if self._own_watch:
            if self.watch.lifeline is not None:
                self.watch.lifeline.stop()
            self.watch.close()
        self.comm.Free()

    def __enter__(self) -> Team:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:  # else some ranks may not come
            meet(self, "the end of the team")
            self.close()

    def _duplicate(self) -> MPI.Intracomm | Lines:
        if isinstance(self.comm, Lines):
            return self.comm.twin()
        made, request = self.comm.Idup()
        wait(self, [request], Place("the duplication of a communicator"))
        return MPI.Intracomm(made)

    def _grouped(self, ranks: tuple[int, ...]) -> MPI.Intracomm | Lines:
        """A communicator of some ranks. Collective over them."""
        if isinstance(self.comm, Lines):
            return self.comm.part(ranks)
        everyone = self.comm.Get_group()
        chosen = everyone.Incl(ranks)
        made = self.comm.Create_group(chosen)
        chosen.Free()
        everyone.Free()
        return made

    def _meet(self, ranks: tuple[int, ...]) -> None:
        """Return once these ranks are there, so that a call that blocks in MPI has nobody to wait for."""
        (first, *others), note = ranks, bytearray(1)
        place = Place("the start of an exchange", ranks)
        for sent_by, sent_to in ((others, [first]), ([first], others)):
            if self.rank in sent_by:
                wait(self, [self.comm.Isend(note, to, MEETING_TAG) for to in sent_to], place)
            elif self.rank in sent_to:
                wait(self, [self.comm.Irecv(bytearray(1), source, MEETING_TAG) for source in sent_by], place)
