"""The ranks that work together, and all that they reach each other by: the one owner of communicators."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from mpi4py import MPI

from mpiconv.errors import MpiconvError
from mpiconv.job.lifeline import Lifeline
from mpiconv.job.lines import Lines
from mpiconv.job.openmpi import survives
from mpiconv.job.seats import Seat, crowded, find_seats
from mpiconv.job.waiting import Waiting, meet, meet_some, wait
from mpiconv.job.watch import Place, Watch


class Team:
    """The ranks of a communicator. It owns what is made from it, and gives all of it back when it is closed.

    ``Team.of`` makes one; ``twin`` and ``part`` make teams from it that share its watch, ``shrink`` one that does not.

    Attributes
    ----------
    comm
        Its communicator, which nobody else uses; where ranks of it were lost, the lines between those who are left.
    watch, members
        Looks after the long waits of this rank; the numbers of the team's ranks as it counts them.
    seats
        Where each rank runs.
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
        return cls.formed(blind._duplicate(), blind._duplicate(), lifeline)

    @classmethod
    def formed(cls, comm: MPI.Intracomm | Lines, messages: MPI.Intracomm | Lines, lifeline: Lifeline | None) -> Team:
        """A team with a watch of its own. Collective."""
        team = cls(comm, Watch(lifeline=lifeline), range(comm.size))
        team.seats = find_seats(team)
        team.watch, team._own_watch = Watch(messages, team.hosts, lifeline), True
        if lifeline is not None:
            lifeline.seats |= dict(zip(lifeline.living, team.seats, strict=True))
        return team

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
        return crowded(self.seats)

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
            meet_some(self, chosen)
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
