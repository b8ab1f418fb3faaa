"""Policy: budgets, order, turns, pages."""

from __future__ import annotations

from bark_fast.engine.kv_cache import PagePool
from bark_fast.engine.scheduler import Batch, Job, Policy, Scheduler, Work

LIMITS = {
    Work.SEMANTIC_PREFILL: 100,
    Work.SEMANTIC_DECODE: 4,
    Work.COARSE_PREFILL: 100,
    Work.COARSE_DECODE: 4,
    Work.FINE: 2,
    Work.CODEC: 1000,
}


def make(*, n_pages: int = 100, max_running: int = 8, patience: int = 32) -> Scheduler:
    pools = {stage: PagePool(n_pages, page_size=10) for stage in ("semantic", "coarse")}
    return Scheduler(pools, LIMITS, max_running=max_running, patience=patience)


def prompt(order: int, n_tokens: int, work: Work = Work.SEMANTIC_PREFILL) -> Job:
    return Job(order, None, work, cost=n_tokens, positions=n_tokens)


def run(scheduler: Scheduler, policy: Policy = "latency") -> Batch:
    batch = scheduler.next(policy)
    assert batch is not None
    scheduler.done(batch)
    return batch


def orders(batch: Batch) -> list[int]:
    return [job.order for job in batch.jobs]


def test_nothing_to_do() -> None:
    assert make().next() is None


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
    first = scheduler.next()
    assert first is not None
    assert scheduler.next() is None
    scheduler.done(first)
    assert orders(run(scheduler)) == [1]


def test_one_group_a_batch_the_oldest_first() -> None:
    scheduler = make()
    for order, group in enumerate((2, 3, 2, 2)):
        scheduler.add(Job(order, None, Work.FINE, group=group))
    assert orders(run(scheduler)) == [0, 2]
    assert orders(run(scheduler)) == [1]
    assert orders(run(scheduler)) == [3]


def test_alone_means_alone() -> None:
    scheduler = make()
    for order in range(4):
        scheduler.add(Job(order, None, Work.FINE, alone=order in (1, 2)))
    assert [orders(run(scheduler)) for _ in range(4)] == [[0], [1], [2], [3]]


def everything() -> Scheduler:
    scheduler = make(max_running=32)
    for order in range(8):
        scheduler.add(prompt(order, 50))
    for work in (Work.SEMANTIC_DECODE, Work.COARSE_DECODE):
        for order in range(3):
            scheduler.add(Job(order, None, work, positions=5))
    scheduler.add(Job(0, None, Work.FINE))
    scheduler.add(Job(0, None, Work.CODEC, cost=100))
    return scheduler


def test_latency_ends_utterances_first_and_then_takes_turns() -> None:
    scheduler = everything()
    assert run(scheduler, "latency").work == Work.CODEC
    assert run(scheduler, "latency").work == Work.FINE
    turns = []
    for _ in range(6):
        batch = run(scheduler, "latency")
        turns.append(batch.work)
        if batch.work != Work.SEMANTIC_PREFILL:
            for job in batch.jobs:
                scheduler.add(job)
    expected = [Work.COARSE_DECODE, Work.SEMANTIC_DECODE, Work.SEMANTIC_PREFILL] * 2
    assert turns == expected


def test_throughput_takes_the_fullest_batch() -> None:
    scheduler = everything()
    # Prompts: 100 of 100. Decode: 3 of 4. Fine: 1 of 2. Codec: 100 of 1 000.
    order = [run(scheduler, "throughput").work for _ in range(8)]
    assert order == [
        *[Work.SEMANTIC_PREFILL] * 4,
        Work.COARSE_DECODE,  # of equal ones the later stage
        Work.SEMANTIC_DECODE,
        Work.FINE,
        Work.CODEC,
    ]


def test_no_kind_of_work_starves() -> None:
    """However full the others are, the least full batch runs after `patience` turns."""
    scheduler = make(patience=10)
    scheduler.add(Job(0, None, Work.CODEC, cost=1))
    for order in range(4):
        scheduler.add(Job(order, None, Work.SEMANTIC_DECODE, positions=5))
    works = []
    for _ in range(11):
        batch = run(scheduler, "throughput")
        works.append(batch.work)
        for job in batch.jobs:
            scheduler.add(job)
    assert works == [Work.SEMANTIC_DECODE] * 10 + [Work.CODEC]


def test_staged_stays_in_a_stage_while_it_has_work() -> None:
    scheduler = make()
    scheduler.add(Job(0, None, Work.FINE))
    scheduler.add(prompt(1, 10))
    scheduler.add(prompt(2, 10))
    ran = [run(scheduler, "staged").work.stage]  # the most work
    scheduler.add(Job(1, None, Work.SEMANTIC_DECODE, positions=11))
    scheduler.add(Job(3, None, Work.FINE))
    scheduler.add(Job(4, None, Work.FINE))
    ran += [run(scheduler, "staged").work.stage for _ in range(3)]
    assert ran == ["semantic", "semantic", "fine", "fine"]


def test_staged_starves_nobody() -> None:
    """However many prompts arrive, the others run at last."""
    scheduler = make(patience=2)
    scheduler.add(prompt(0, 10))
    run(scheduler, "staged")
    scheduler.add(Job(1, None, Work.FINE))
    for order in range(2, 100):
        scheduler.add(prompt(order, 100))
        batch = run(scheduler, "staged")
        if batch.work == Work.FINE:
            break
        scheduler.release(batch.jobs[0])
    assert batch.work == Work.FINE
    assert order > 16


def test_utterances_wait_for_pages() -> None:
    scheduler = make(n_pages=10)
    jobs = [prompt(order, 40) for order in range(3)]
    for job in jobs:
        scheduler.add(job)
    assert orders(run(scheduler)) == [0, 1]
    assert scheduler.next() is None  # the younger must not take the pages of the older
    scheduler.release(jobs[0])
    assert orders(run(scheduler)) == [2]
    assert len(jobs[2].pages) == 4


def test_no_more_than_max_running_hold_pages() -> None:
    scheduler = make(max_running=2)
    jobs = [prompt(order, 10) for order in range(3)]
    for job in jobs:
        scheduler.add(job)
    assert orders(run(scheduler)) == [0, 1]
    assert scheduler.next() is None
    scheduler.release(jobs[1])
    assert orders(run(scheduler)) == [2]


def decode(scheduler: Scheduler, job: Job, positions: int) -> None:
    job.work, job.cost, job.positions = Work.SEMANTIC_DECODE, 1, positions
    scheduler.add(job)


def test_the_youngest_gives_its_pages_to_the_oldest_and_gets_others() -> None:
    scheduler = make(n_pages=9)
    jobs = [prompt(order, 30) for order in range(3)]
    for job in jobs:
        scheduler.add(job)
    assert orders(run(scheduler)) == [0, 1, 2]
    for job in jobs:
        decode(scheduler, job, 35)
    batch = run(scheduler)
    # 2 lost its pages to 0, and 1 took another of them.
    assert orders(batch) == [0, 1]
    assert [(job.order, len(pages)) for job, pages in batch.evicted] == [(2, 3)]
    assert jobs[2].pages == []
    newcomer = prompt(3, 10)
    scheduler.add(newcomer)
    assert scheduler.next() is None, "a newcomer must not take what the preempted one waits for"
    scheduler.release(jobs[0])
    batch = run(scheduler)
    assert (orders(batch), batch.restored) == ([2], [jobs[2]])
    assert len(jobs[2].pages) == 4
    scheduler.remove(newcomer)
    for job in jobs:
        scheduler.release(job)


def test_an_older_one_being_run_is_not_robbed() -> None:
    scheduler = make(n_pages=4)
    old, young = prompt(0, 20), prompt(1, 20)
    scheduler.add(old)
    scheduler.add(young)
    run(scheduler)
    decode(scheduler, young, 25)
    assert scheduler.next() is None
    scheduler.release(old)
    assert orders(run(scheduler)) == [1]


def test_a_batch_that_was_too_large_is_halved() -> None:
    scheduler = make()
    for order in range(4):
        scheduler.add(Job(order, None, Work.SEMANTIC_DECODE, positions=5))
    batch = run(scheduler)
    assert len(batch.jobs) == 4
    scheduler.shrink(batch)
    for job in batch.jobs:
        scheduler.add(job)
    assert orders(run(scheduler)) == [0, 1]
    for _ in range(5):
        scheduler.shrink(batch)
    assert scheduler.limits[Work.SEMANTIC_DECODE] == 1
