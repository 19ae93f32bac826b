"""A model of the store's protocol, small enough to run every interleaving of its actors.

The store is a set of blobs and a map of manifests; an actor is a program whose every step touches the store at most
once, so a run of the model is a sequence of steps, each of any actor. `explore` visits every state that any sequence
reaches, and returns the first broken promise with the steps that lead there.

    P(task)    publishes: read newest, write a blob, check with head, commit, confirm
    R          rolls back to version 1: read newest, read version 1, check with head, commit, confirm
    G          collects: read newest, list blobs, commit, confirm, delete manifests, delete blobs
    V          reads the newest version, blob by blob; what is gone makes it start over

With a fault to spend, one actor crashes for good before any of its steps, or the reply to one commit is lost, or the
store acknowledges one blob and does not keep it.
`Rules` switches single rules of the protocol off: a rule is needed if switching it off breaks a promise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

ROLL_BACK_TO = 1


@dataclass(frozen=True)
class Rules:
    """The protocol's rules, all on. `keep` is how many versions a collection keeps, its own among them."""

    keep: int = 1
    nonces: bool = True
    """A blob's key carries the attempt that wrote it, not only its content."""
    heads: bool = True
    """Before a commit every blob that it names is looked for."""
    gc_publishes: bool = True
    """A collection commits a version before it deletes; else it trusts that its list is old enough."""
    gc_lists_first: bool = True
    """A collection deletes nothing beyond the list that it took before its commit."""
    losers_write_again: bool = True
    """Who lost its commit writes its blobs again; else it names those that it wrote before the loss."""
    loser_minds_last_gc: bool = False
    """With `losers_write_again` off: it does so only for blobs written on a version >= the newest's `last_gc`."""
    rollback_minds_oldest_kept: bool = True
    """A roll-back below `oldest_kept` is refused, even while the manifest is still there."""
    commits_are_confirmed: bool = True
    """After the write of a manifest its number is held against the newest version's `oldest_kept`."""
    unsure_keeps_blobs: bool = True
    """Who can't tell whether it has published deletes nothing."""
    reader_starts_over: bool = True
    """A reader whom gc overtook drops what it has read; else it goes on with the blobs in hand."""


class Manifest(NamedTuple):
    """A version: which blobs it names, and (only for the promises: actors ignore them) the commits that led to it."""

    writer: str
    names: frozenset[str]
    last_gc: int
    oldest_kept: int
    line: frozenset[str]


class Store(NamedTuple):
    manifests: tuple[tuple[int, Manifest], ...]
    blobs: frozenset[str]

    def newest(self) -> int:
        return self.manifests[-1][0]

    def get(self, number: int) -> Manifest | None:
        return dict(self.manifests).get(number)

    def put(self, number: int, manifest: Manifest) -> Store:
        return self._replace(manifests=tuple(sorted((*self.manifests, (number, manifest)))))

    def without(self, number: int) -> Store:
        return self._replace(manifests=tuple(pair for pair in self.manifests if pair[0] != number))


class Actor(NamedTuple):
    """Where an actor is, and what it remembers."""

    at: str = "read"
    attempt: int = 0
    parent: int = 0
    seen: Manifest | None = None
    names: frozenset[str] = frozenset()
    own: str = ""
    built_on: int = 0
    listed: frozenset[str] = frozenset()
    oldest_kept: int = 0


class Step(NamedTuple):
    """An actor's next state and the store's; `faults` is what the step takes of the faults to spend."""

    actor: Actor
    store: Store
    faults: int = 0


Program = Callable[[Actor, Store], Iterator[Step]]
DONE, REFUSED, CRASHED = (Actor(at=at) for at in ("done", "refused", "crashed"))
FINAL = ("done", "refused", "crashed")
FIRST = Store(
    manifests=(
        (1, Manifest("first", frozenset({"a.0"}), 0, 1, frozenset())),
        (2, Manifest("second", frozenset({"b.0", "b.1"}), 0, 1, frozenset())),
    ),
    blobs=frozenset({"a.0", "b.0", "b.1"}),
)
"""Two versions that share nothing."""


def publisher(task: str, rules: Rules) -> Program:
    """P(task): adds a blob of its own to what the newest version names."""

    def steps(me: Actor, store: Store) -> Iterator[Step]:
        if me.at == "read":
            me = _read_newest(me, store)
            assert me.seen is not None
            published = any(name.startswith(f"{task}.") for name in me.seen.names)
            yield Step(DONE if published else me._replace(at="write"), store)
        elif me.at == "write":
            assert me.seen is not None
            names = me.seen.names
            kept = me.own and not rules.losers_write_again
            if kept and (me.built_on >= me.seen.last_gc or not rules.loser_minds_last_gc):
                own = me.own
            else:
                me = me._replace(attempt=me.attempt + 1, built_on=me.parent)
                own = f"{task}.{me.attempt if rules.nonces else 0}"
                yield Step(me._replace(at="head", own=own, names=names | {own}), store, faults=1)
                store = store._replace(blobs=store.blobs | {own})
            yield Step(me._replace(at="head", own=own, names=names | {own}), store)
        elif me.at == "head":
            yield _head(me, store, rules)
        else:
            yield from _commit(me, store, task, rules, lambda seen: seen._replace(names=me.names))

    return steps


def rollback(rules: Rules) -> Program:
    """R: publishes what version 1 names."""

    def steps(me: Actor, store: Store) -> Iterator[Step]:
        if me.at == "read":
            yield Step(_read_newest(me, store)._replace(at="old"), store)
        elif me.at == "old":
            assert me.seen is not None
            old = store.get(ROLL_BACK_TO)
            if rules.rollback_minds_oldest_kept and me.seen.oldest_kept > ROLL_BACK_TO:
                yield Step(REFUSED, store)
            elif old is None:  # gone in the meantime, or gone for good if nobody respects `oldest_kept`
                yield Step(Actor() if rules.rollback_minds_oldest_kept else REFUSED, store)
            elif old.names == me.seen.names:
                yield Step(DONE, store)
            else:
                yield Step(me._replace(at="head", names=old.names), store)
        elif me.at == "head":
            yield _head(me, store, rules)
        else:
            yield from _commit(me, store, "R", rules, lambda seen: seen._replace(names=me.names))

    return steps


def collector(rules: Rules) -> Program:
    """G: commits the same state as its own version, then deletes what was on its list and no kept version names."""

    def commit(seen: Manifest, me: Actor) -> Manifest:
        return seen._replace(last_gc=me.parent + 1, oldest_kept=me.oldest_kept)

    def steps(me: Actor, store: Store) -> Iterator[Step]:
        if me.at == "read":
            yield Step(_read_newest(me, store)._replace(at="list"), store)
        elif me.at == "list":
            assert me.seen is not None
            oldest = max(me.seen.oldest_kept, me.parent + 2 - rules.keep)
            kept = [manifest for number, manifest in store.manifests if oldest <= number <= me.parent]
            names = me.seen.names.union(*(manifest.names for manifest in kept))
            if rules.gc_publishes:
                yield Step(me._replace(at="commit", oldest_kept=oldest, names=names, listed=store.blobs), store)
            else:
                yield Step(Actor("manifests", names=names, listed=store.blobs, oldest_kept=me.parent), store)
        elif me.at == "manifests":
            below = [number for number, _ in store.manifests if number < me.oldest_kept]
            if below:
                yield Step(me, store.without(below[0]))
            else:
                listed = me.listed if rules.gc_lists_first else store.blobs
                yield Step(Actor("blobs", listed=listed - me.names), store)
        elif me.at == "blobs":
            garbage = sorted(me.listed & store.blobs)
            after = me._replace(listed=frozenset(garbage[1:])) if garbage[1:] else DONE
            yield Step(after, store._replace(blobs=store.blobs - set(garbage[:1])))
        else:
            then = Actor("manifests", names=me.names, listed=me.listed, oldest_kept=me.oldest_kept)
            yield from _commit(me, store, "G", rules, lambda seen: commit(seen, me), then=then)

    return steps


def reader(rules: Rules) -> Program:
    """V: `names` is what it has read, one blob per step."""

    def steps(me: Actor, store: Store) -> Iterator[Step]:
        if me.at == "read":
            kept = frozenset() if rules.reader_starts_over else me.names
            yield Step(_read_newest(me, store)._replace(at="blob", names=kept), store)
            return
        assert me.seen is not None
        rest = sorted(me.seen.names - me.names)
        if not rest:
            yield Step(DONE if me.names == me.seen.names else Actor("mixed"), store)
        elif rest[0] in store.blobs:
            yield Step(me._replace(names=me.names | {rest[0]}), store)
        else:
            yield Step(Actor(names=me.names if not rules.reader_starts_over else frozenset()), store)

    return steps


def _read_newest(me: Actor, store: Store) -> Actor:
    """List and read as one step: a manifest never changes, so reading it late is the same as reading it early."""
    number, manifest = store.manifests[-1]
    return me._replace(parent=number, seen=manifest)


def _head(me: Actor, store: Store, rules: Rules) -> Step:
    there = me.names <= store.blobs or not rules.heads
    return Step(me._replace(at="commit") if there else _again(me, own=""), store)


def _commit(
    me: Actor, store: Store, who: str, rules: Rules, build: Callable[[Manifest], Manifest], *, then: Actor = DONE
) -> Iterator[Step]:
    """The steps `commit`, `read back` (a reply was lost, or the key was taken), and `confirm` of success or loss."""
    number = me.parent + 1
    if me.at == "commit":
        assert me.seen is not None
        after = me._replace(seen=None, names=me.names if who == "G" else frozenset())
        if store.get(number) is None:
            line = me.seen.line | ({who} - {"R", "G"})
            store = store.put(number, build(me.seen)._replace(writer=who, line=line))
            yield Step(after._replace(at="confirm"), store)
            yield Step(after._replace(at="read back"), store, faults=1)
        else:
            yield Step(after._replace(at="read back"), store)
    elif me.at == "read back":
        found = store.get(number)
        if found is None:
            yield _unsure(me, store, rules)
        else:
            yield Step(me._replace(at="confirm" if found.writer == who else "confirm loss"), store)
    elif rules.commits_are_confirmed and store.manifests[-1][1].oldest_kept > number:
        yield _unsure(me, store, rules)
    elif me.at == "confirm":
        yield Step(then, store)
    elif rules.losers_write_again and me.own:  # confirm loss
        yield Step(_again(me, own=""), store._replace(blobs=store.blobs - {me.own}))
    else:
        yield Step(_again(me, own=me.own), store)


def _unsure(me: Actor, store: Store, rules: Rules) -> Step:
    if not rules.unsure_keeps_blobs and me.own:
        store = store._replace(blobs=store.blobs - {me.own})
    return Step(_again(me, own=""), store)


def _again(me: Actor, *, own: str) -> Actor:
    """From the start; the actor remembers only how often it tried and, if requested, what it wrote."""
    return Actor(attempt=me.attempt, own=own, built_on=me.built_on if own else 0)


@dataclass(frozen=True)
class Outcome:
    """What an exploration found: how many states there are, the first broken promise with the steps that lead to it,
    and how the actors may end."""

    num_states: int
    broken: str | None = None
    trace: tuple[str, ...] = ()
    ends: frozenset[tuple[str, ...]] = frozenset()


State = tuple[int, ...]
"""Faults left, the store, and the actors: numbers of `_Numbers`, so that millions of states fit into memory."""


class _Numbers(dict[Any, int]):
    """Numbers distinct values in the order in which they appear."""

    def __init__(self) -> None:
        self.values_: list[Any] = []

    def __missing__(self, value: Any) -> int:
        self[value] = len(self.values_)
        self.values_.append(value)
        return self[value]


class Exploration:
    """Every interleaving of `actors`: `R`, `G`, and any other name for a publisher of that task."""

    def __init__(self, actors: Sequence[str], rules: Rules, faults: int) -> None:
        special = {"R": rollback, "G": collector}
        self.names = actors
        self.programs = [special[name](rules) if name in special else publisher(name, rules) for name in actors]
        self.stores, self.actors = _Numbers(), _Numbers()
        self.start = (faults, self.stores[FIRST], *(self.actors[Actor()] for _ in actors))
        self.changes: defaultdict[Store, set[Store]] = defaultdict(set)
        """Which stores follow which: all that a reader, who changes nothing, can ever see."""
        self._steps: dict[tuple[int, int, int], list[tuple[str, int, int, int]]] = {}
        self._broken: dict[tuple[int, ...], str | None] = {}

    def run(self) -> Outcome:
        """Depth first; a state that is met again on its own path means that an actor can loop for ever."""
        came_from: dict[State, tuple[State, str] | None] = {self.start: None}
        on_path = {self.start}
        ends: set[tuple[str, ...]] = set()
        stack = [(self.start, self._next(self.start))]
        while stack:
            state, moves = stack[-1]
            for label, after in moves:
                if after in on_path:
                    return self._found(came_from, state, label, "somebody goes round in circles for ever")
                if after in came_from:
                    continue
                if broken := self._promise(after):
                    return self._found(came_from, state, label, broken)
                came_from[after] = (state, label)
                on_path.add(after)
                stack.append((after, self._next(after)))
                break
            else:
                stack.pop()
                on_path.remove(state)
                places = tuple(self.actors.values_[actor].at for actor in state[2:])
                if all(place in FINAL for place in places):
                    ends.add(places)
        return Outcome(len(came_from), ends=frozenset(ends))

    def _next(self, state: State) -> Iterator[tuple[str, State]]:
        faults, store, *actors = state
        for i, actor in enumerate(actors):
            key = (i, actor, store)
            if key not in self._steps:
                self._steps[key] = self._of(*key)
            for label, moved, changed, cost in self._steps[key]:
                if cost <= faults:
                    yield label, (faults - cost, changed, *actors[:i], moved, *actors[i + 1 :])

    def _of(self, i: int, actor: int, store: int) -> list[tuple[str, int, int, int]]:
        me, before, name = self.actors.values_[actor], self.stores.values_[store], self.names[i]
        if me.at in FINAL:
            return []
        steps = [(f"{name}: crashes", self.actors[CRASHED], store, 1)]
        for step in self.programs[i](me, before):
            lost = ", and it is lost" if step.faults else ""
            steps.append((f"{name}: {me.at}{lost}", self.actors[step.actor], self.stores[step.store], step.faults))
            if step.store != before:
                self.changes[before].add(step.store)
        return steps

    def _promise(self, state: State) -> str | None:
        """The promise that a state breaks, or None."""
        done = tuple(i for i, actor in enumerate(state[2:]) if self.actors.values_[actor] == DONE)
        key = (state[1], *done)
        if key not in self._broken:
            self._broken[key] = broken(self.stores.values_[state[1]], [self.names[i] for i in done])
        return self._broken[key]

    def _found(self, came_from: dict[State, Any], state: State, label: str, what: str) -> Outcome:
        trace = [label]
        while origin := came_from[state]:
            state, label = origin
            trace.append(label)
        return Outcome(len(came_from), what, tuple(reversed(trace)))


def broken(store: Store, done: Sequence[str]) -> str | None:
    """The promise that a store breaks, when the actors in `done` are done; or None."""
    newest = store.manifests[-1][1]
    for number, manifest in store.manifests:
        if number >= newest.oldest_kept and not manifest.names <= store.blobs:
            return f"version {number} is kept and names blobs that are gone: {sorted(manifest.names - store.blobs)}"
    for name in done:
        if name not in "RG" and name not in newest.line:
            return f"publisher {name} is done, and no version descends from what it published"
    return None


def explore(actors: Sequence[str], rules: Rules | None = None, *, faults: int = 0) -> Outcome:
    """Run every interleaving of writers, and of a reader with everything they do. See `Exploration`."""
    rules = rules or Rules()
    writers = Exploration(actors, rules, faults)
    outcome = writers.run()
    if outcome.broken:
        return outcome
    return replace(outcome, broken=read_everywhere(writers.changes, rules))


def read_everywhere(changes: Mapping[Store, Collection[Store]], rules: Rules) -> str | None:
    """Run a reader through every sequence of stores: the promise that it breaks, or None."""
    steps = reader(rules)
    waiting = [(Actor(), store) for store in changes]
    seen = set(waiting)
    while waiting:
        me, store = waiting.pop()
        if me.at == "mixed":
            return "a reader mixes versions"
        if me.at in FINAL:
            continue
        (step,) = steps(me, store)
        if step.actor.at == "read" and store.manifests[-1][1] == me.seen:
            return "a reader starts over for ever: what it misses is missing in the newest version"
        for after in [(step.actor, store), *((me, changed) for changed in changes.get(store, ()))]:
            if after not in seen:
                seen.add(after)
                waiting.append(after)
    return None
