"""The worker: order, events, cancelling, and the one thread that everything runs on."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from mlxchat.engine.worker import Job, JobCancelledError, JobContext, Worker

WAIT_S = 20.0


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def hold(worker: Worker, *, idle: bool = False) -> tuple[Job[str], threading.Event]:
    """A job that runs until the event is set or it is cancelled."""
    go, started = threading.Event(), threading.Event()

    def wait(context: JobContext) -> str:
        started.set()
        deadline = time.monotonic() + WAIT_S
        while not go.wait(0.001) and time.monotonic() < deadline:
            context.check()
        return "done"

    job = worker.submit(wait, idle=idle)
    assert started.wait(WAIT_S)
    return job, go


def test_events_come_in_order_and_end(worker: Worker) -> None:
    """Iterating gives every event once, in order, and ends with the job."""

    def count(context: JobContext) -> str:
        for number in range(100):
            context.emit(number)
        return "counted"

    job = worker.submit(count)
    assert list(job) == list(range(100))
    assert list(job) == []
    assert job.result(WAIT_S) == "counted"
    assert job.done


def test_events_come_while_the_job_runs(worker: Worker) -> None:
    """An event is handed over at once, not when the job has ended."""
    go = threading.Event()

    def wait(context: JobContext) -> bool:
        context.emit("first")
        return go.wait(WAIT_S)

    job = worker.submit(wait)
    assert next(iter(job)) == "first"
    assert not job.done
    go.set()
    assert job.result(WAIT_S)


def test_an_exception_reaches_the_caller(worker: Worker) -> None:
    """What a job raises ends its events, is raised by result(), and leaves the worker working."""

    def fail(context: JobContext) -> None:
        context.emit(1)
        raise ValueError("no such thing")

    job = worker.submit(fail)
    assert list(job) == [1]
    with pytest.raises(ValueError, match="no such thing"):
        job.result(WAIT_S)
    assert worker.run(lambda _: "alive") == "alive"


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_no_exception_ends_the_thread(worker: Worker, error: type[BaseException]) -> None:
    """Exceptions beside Exception are handed over too; the thread lives on."""

    def fail(context: JobContext) -> None:
        raise error

    with pytest.raises(error):
        worker.submit(fail).result(WAIT_S)
    assert worker.run(lambda _: 1) == 1


def test_cancel_is_seen_between_events(worker: Worker) -> None:
    """The flag that the caller sets while taking events stops the job at its next check."""

    def count(context: JobContext) -> None:
        for number in range(1_000_000):
            context.check()
            context.emit(number)
            time.sleep(0.001)

    job = worker.submit(count)
    seen = []
    for number in job:
        seen.append(number)
        if number == 3:
            job.cancel()
    assert seen == list(range(len(seen)))
    assert 4 <= len(seen) < 1000
    with pytest.raises(JobCancelledError):
        job.result(WAIT_S)


def test_a_job_may_end_well_after_a_cancel(worker: Worker) -> None:
    """`cancelled` only tells: what the job returns then is its result."""
    go, started = threading.Event(), threading.Event()

    def stop(context: JobContext) -> bool:
        started.set()
        go.wait(WAIT_S)
        return context.cancelled

    job = worker.submit(stop)
    assert started.wait(WAIT_S)
    job.cancel()
    go.set()
    assert job.result(WAIT_S) is True


def test_cancel_before_the_start(worker: Worker) -> None:
    """A job that was cancelled while it waited never runs."""
    blocker, go = hold(worker)
    ran = []
    job = worker.submit(lambda _: ran.append(1))
    job.cancel()
    go.set()
    assert list(job) == []
    with pytest.raises(JobCancelledError):
        job.result(WAIT_S)
    assert ran == []
    assert blocker.result(WAIT_S) == "done"


def test_foreground_jobs_run_in_the_order_of_arrival(worker: Worker) -> None:
    """Jobs do not overtake each other, and idle ones wait for all of them."""
    _, go = hold(worker)
    order: list[str] = []
    jobs = [worker.submit(lambda _: order.append("idle"), idle=True)]
    jobs += [worker.submit(lambda _, n=n: order.append(n)) for n in "abcd"]
    go.set()
    for job in jobs:
        job.result(WAIT_S)
    assert order == [*"abcd", "idle"]


def test_a_foreground_job_cancels_the_idle_one(worker: Worker) -> None:
    """An idle job that runs is told to stop as soon as a foreground job is there."""
    idle, _ = hold(worker, idle=True)
    assert worker.submit(lambda _: "turn").result(WAIT_S) == "turn"
    with pytest.raises(JobCancelledError):
        idle.result(WAIT_S)


def test_an_idle_job_leaves_the_running_one_alone(worker: Worker) -> None:
    """Idle work cancels nothing, neither a turn nor other idle work."""
    for is_idle in (False, True):
        job, go = hold(worker, idle=is_idle)
        later = worker.submit(lambda _: "later", idle=True)
        assert not job.done
        go.set()
        assert job.result(WAIT_S) == "done"
        assert later.result(WAIT_S) == "later"


def test_cancel_idle_spares_foreground_jobs(worker: Worker) -> None:
    """Idle jobs that run or wait are cancelled; foreground jobs go on."""
    running, _ = hold(worker, idle=True)
    waiting = worker.submit(lambda _: "idle", idle=True)
    worker.cancel_idle()
    for job in (running, waiting):
        with pytest.raises(JobCancelledError):
            job.result(WAIT_S)
    turn, go = hold(worker)
    worker.cancel_idle()
    go.set()
    assert turn.result(WAIT_S) == "done"


def test_result_times_out(worker: Worker) -> None:
    """A job that does not end in time is not waited for."""
    job, go = hold(worker)
    with pytest.raises(TimeoutError, match="still running"):
        job.result(0.01)
    go.set()
    assert job.result(WAIT_S) == "done"


def test_close_cancels_everything_and_ends(worker: Worker) -> None:
    """What runs or waits is cancelled, the thread ends, and nothing more is taken."""
    running, _ = hold(worker)
    waiting = [worker.submit(lambda _: 1, idle=is_idle) for is_idle in (False, True)]
    worker.close(WAIT_S)
    assert not worker._thread.is_alive()
    for job in (running, *waiting):
        assert job.done
        with pytest.raises(JobCancelledError):
            job.result(0)
    with pytest.raises(RuntimeError, match="closed"):
        worker.submit(lambda _: 1)
    worker.close(WAIT_S)  # once more does no harm


def test_all_jobs_run_on_one_thread(worker: Worker) -> None:
    """Foreground and idle jobs share a thread that is not the caller's."""
    jobs = [worker.submit(lambda _: threading.get_ident(), idle=i % 2 == 1) for i in range(6)]
    idents = {job.result(WAIT_S) for job in jobs}
    assert len(idents) == 1
    assert threading.get_ident() not in idents


def test_an_evaluated_array_can_be_read_elsewhere() -> None:
    """Arrays evaluated on the worker are readable on the caller's thread, also after its end."""
    from mlxchat.model.device import load_mlx

    mx = load_mlx()

    def make(context: JobContext) -> object:
        array = mx.arange(6).reshape(2, 3) @ mx.ones((3, 2), mx.int32).astype(mx.float32)
        mx.eval(array)
        return array

    worker = Worker()
    array = worker.run(make)
    assert array.tolist() == [[3, 3], [12, 12]]
    worker.close()
    assert array.tolist() == [[3, 3], [12, 12]]


def test_the_process_ends_well_after_close() -> None:
    """A program that closes its worker and ends at once ends with code 0.

    MLX's streams of a thread that ends while the process does abort it, in most runs.
    """
    program = (
        "from mlxchat.engine.worker import Worker\n"
        "from mlxchat.model.device import load_mlx\n"
        "worker = Worker()\n"
        "def work(context):\n"
        "    mx = load_mlx()\n"
        "    a = mx.random.normal((64, 64))\n"
        "    b = mx.compile(lambda x: mx.exp(x) @ x)(a)\n"
        "    mx.async_eval(b @ a)\n"
        "worker.run(work)\n"
        "worker.close()\n"
    )
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")


def test_batches(worker: Worker) -> None:
    """The first event comes at once, then those of an interval together; the end never waits."""
    goes_on = threading.Event()

    def emit(context: JobContext) -> None:
        for number in range(100):
            context.emit(number)
            if number == 0:
                goes_on.wait(20)

    job = worker.submit(emit)
    batches = job.batches(lambda: 3600.0)
    assert next(batches) == [0]
    goes_on.set()
    rest = [event for batch in batches for event in batch]
    assert rest == list(range(1, 100))
    assert list(job.batches(lambda: 0.0)) == []
