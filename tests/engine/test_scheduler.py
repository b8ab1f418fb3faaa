"""Policy: budgets, order, turns, pages."""

from __future__ import annotations

from bark_fast.engine.kv_cache import PagePool
from bark_fast.engine.scheduler import Batch, Phase, Policy, Ready, ScheduledTask, Scheduler

LIMITS = {
    Phase.SEMANTIC_PREFILL: 100,
    Phase.SEMANTIC_DECODE: 4,
    Phase.COARSE_PREFILL: 100,
    Phase.COARSE_DECODE: 4,
    Phase.FINE: 2,
    Phase.CODEC: 1000,
}


def make(*, n_pages: int = 100, max_running: int = 8, patience: int = 32) -> Scheduler[None]:
    pools = {stage: PagePool(n_pages, page_size=10) for stage in ("semantic", "coarse")}
    return Scheduler(pools, LIMITS, max_running=max_running, patience=patience)


def task(order: int, phase: Phase, *, alone: bool = False, **ready: int) -> ScheduledTask[None]:
    return ScheduledTask(order, None, Ready(phase, **ready), alone=alone)


def prompt(order: int, n_tokens: int, phase: Phase = Phase.SEMANTIC_PREFILL) -> ScheduledTask[None]:
    return task(order, phase, cost=n_tokens, positions=n_tokens)


def run(scheduler: Scheduler[None], policy: Policy = "latency") -> Batch[None]:
    batch = scheduler.schedule(policy)
    assert batch is not None
    scheduler.complete(batch)
    return batch


def orders(batch: Batch[None]) -> list[int]:
    return [each.order for each in batch.tasks]


def test_nothing_to_do() -> None:
    assert make().schedule() is None


def test_prompts_up_to_the_budget_in_order_of_arrival() -> None:
    scheduler = make()
    for order in (3, 0, 2, 1):
        scheduler.add(prompt(order, 40))
    assert orders(run(scheduler)) == [0, 1]
    assert orders(run(scheduler)) == [2, 3]


def test_a_prompt_above_the_budget_runs_alone() -> None:
    scheduler = make()
    scheduler.add(prompt(0, 150))
    scheduler.add(prompt(1, 10))
    assert orders(run(scheduler)) == [0]
    assert orders(run(scheduler)) == [1]


def test_nobody_is_overtaken_for_want_of_room() -> None:
    """A small prompt that would fit does not pass a large one that does not."""
    scheduler = make()
    for order, n in enumerate((60, 60, 30)):
        scheduler.add(prompt(order, n))
    assert orders(run(scheduler)) == [0]
    assert orders(run(scheduler)) == [1, 2]


def test_one_batch_of_a_kind_at_a_time() -> None:
    scheduler = make()
    scheduler.add(prompt(0, 90))
    scheduler.add(prompt(1, 90))
    first = scheduler.schedule()
    assert first is not None
    assert scheduler.schedule() is None
    scheduler.complete(first)
    assert orders(run(scheduler)) == [1]


def test_one_group_a_batch_the_oldest_first() -> None:
    scheduler = make()
    for order, group in enumerate((2, 3, 2, 2)):
        scheduler.add(task(order, Phase.FINE, group=group))
    assert orders(run(scheduler)) == [0, 2]
    assert orders(run(scheduler)) == [1]
    assert orders(run(scheduler)) == [3]


def test_alone_means_alone() -> None:
    scheduler = make()
    for order in range(4):
        scheduler.add(task(order, Phase.FINE, alone=order in (1, 2)))
    assert [orders(run(scheduler)) for _ in range(4)] == [[0], [1], [2], [3]]


def everything() -> Scheduler[None]:
    scheduler = make(max_running=32)
    for order in range(8):
        scheduler.add(prompt(order, 50))
    for phase in (Phase.SEMANTIC_DECODE, Phase.COARSE_DECODE):
        for order in range(3):
            scheduler.add(task(order, phase, positions=5))
    scheduler.add(task(0, Phase.FINE))
    scheduler.add(task(0, Phase.CODEC, cost=100))
    return scheduler


def test_latency_ends_utterances_first_and_then_takes_turns() -> None:
    scheduler = everything()
    assert run(scheduler, "latency").phase == Phase.CODEC
    assert run(scheduler, "latency").phase == Phase.FINE
    turns = []
    for _ in range(6):
        batch = run(scheduler, "latency")
        turns.append(batch.phase)
        if batch.phase != Phase.SEMANTIC_PREFILL:
            for each in batch.tasks:
                scheduler.add(each)
    expected = [Phase.COARSE_DECODE, Phase.SEMANTIC_DECODE, Phase.SEMANTIC_PREFILL] * 2
    assert turns == expected


def test_throughput_takes_the_fullest_batch() -> None:
    scheduler = everything()
    # Prompts: 100 of 100. Decode: 3 of 4. Fine: 1 of 2. Codec: 100 of 1 000.
    order = [run(scheduler, "throughput").phase for _ in range(8)]
    assert order == [
        *[Phase.SEMANTIC_PREFILL] * 4,
        Phase.COARSE_DECODE,  # of equal ones the later stage
        Phase.SEMANTIC_DECODE,
        Phase.FINE,
        Phase.CODEC,
    ]


def test_no_kind_of_work_starves() -> None:
    """However full the others are, the least full batch runs after `patience` turns."""
    scheduler = make(patience=10)
    scheduler.add(task(0, Phase.CODEC, cost=1))
    for order in range(4):
        scheduler.add(task(order, Phase.SEMANTIC_DECODE, positions=5))
    phases = []
    for _ in range(11):
        batch = run(scheduler, "throughput")
        phases.append(batch.phase)
        for each in batch.tasks:
            scheduler.add(each)
    assert phases == [Phase.SEMANTIC_DECODE] * 10 + [Phase.CODEC]


def test_staged_stays_in_a_stage_while_it_has_work() -> None:
    scheduler = make()
    scheduler.add(task(0, Phase.FINE))
    scheduler.add(prompt(1, 10))
    scheduler.add(prompt(2, 10))
    ran = [run(scheduler, "staged").phase.stage]  # the most work
    scheduler.add(task(1, Phase.SEMANTIC_DECODE, positions=11))
    scheduler.add(task(3, Phase.FINE))
    scheduler.add(task(4, Phase.FINE))
    ran += [run(scheduler, "staged").phase.stage for _ in range(3)]
    assert ran == ["semantic", "semantic", "fine", "fine"]


def test_staged_starves_nobody() -> None:
    """However many prompts arrive, the others run at last."""
    scheduler = make(patience=2)
    scheduler.add(prompt(0, 10))
    run(scheduler, "staged")
    scheduler.add(task(1, Phase.FINE))
    for order in range(2, 100):
        scheduler.add(prompt(order, 100))
        batch = run(scheduler, "staged")
        if batch.phase == Phase.FINE:
            break
        scheduler.release(batch.tasks[0])
    assert batch.phase == Phase.FINE
    assert order > 16


def test_utterances_wait_for_pages() -> None:
    scheduler = make(n_pages=10)
    tasks = [prompt(order, 40) for order in range(3)]
    for each in tasks:
        scheduler.add(each)
    assert orders(run(scheduler)) == [0, 1]
    assert scheduler.schedule() is None  # the younger must not take the pages of the older
    scheduler.release(tasks[0])
    assert orders(run(scheduler)) == [2]
    assert len(tasks[2].pages) == 4


def test_no_more_than_max_running_hold_pages() -> None:
    scheduler = make(max_running=2)
    tasks = [prompt(order, 10) for order in range(3)]
    for each in tasks:
        scheduler.add(each)
    assert orders(run(scheduler)) == [0, 1]
    assert scheduler.schedule() is None
    scheduler.release(tasks[1])
    assert orders(run(scheduler)) == [2]


def decode(scheduler: Scheduler[None], each: ScheduledTask[None], positions: int) -> None:
    each.ready = Ready(Phase.SEMANTIC_DECODE, positions=positions)
    scheduler.add(each)


def test_the_youngest_gives_its_pages_to_the_oldest_and_gets_others() -> None:
    scheduler = make(n_pages=9)
    tasks = [prompt(order, 30) for order in range(3)]
    for each in tasks:
        scheduler.add(each)
    assert orders(run(scheduler)) == [0, 1, 2]
    for each in tasks:
        decode(scheduler, each, 35)
    batch = run(scheduler)
    # 2 lost its pages to 0, and 1 took another of them.
    assert orders(batch) == [0, 1]
    assert [(each.order, len(pages)) for each, pages in batch.evicted] == [(2, 3)]
    assert tasks[2].pages == []
    newcomer = prompt(3, 10)
    scheduler.add(newcomer)
    assert scheduler.schedule() is None, "a newcomer must not take what the preempted one waits for"
    scheduler.release(tasks[0])
    batch = run(scheduler)
    assert (orders(batch), batch.restored) == ([2], [tasks[2]])
    assert len(tasks[2].pages) == 4
    scheduler.remove(newcomer)
    for each in tasks:
        scheduler.release(each)


def test_an_older_one_being_run_is_not_robbed() -> None:
    scheduler = make(n_pages=4)
    old, young = prompt(0, 20), prompt(1, 20)
    scheduler.add(old)
    scheduler.add(young)
    run(scheduler)
    decode(scheduler, young, 25)
    assert scheduler.schedule() is None
    scheduler.release(old)
    assert orders(run(scheduler)) == [1]


def test_a_batch_that_was_too_large_is_halved() -> None:
    scheduler = make()
    for order in range(4):
        scheduler.add(task(order, Phase.SEMANTIC_DECODE, positions=5))
    batch = run(scheduler)
    assert len(batch.tasks) == 4
    scheduler.shrink(batch)
    for each in batch.tasks:
        scheduler.add(each)
    assert orders(run(scheduler)) == [0, 1]
    for _ in range(5):
        scheduler.shrink(batch)
    assert scheduler.limits[Phase.SEMANTIC_DECODE] == 1
