"""Jobs of a cluster without one: what is asked for, what is told, and what is refused."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_scheduler import FakeScheduler, run_in_process
from stub_tasks import StubTask

from vivit_bench.cluster import (
    EndedJob,
    QueueJob,
    QueueListener,
    Request,
    Slurm,
    make_request,
    parse_options,
    run_in_queue,
)
from vivit_bench.cluster import slurm as slurm_module
from vivit_bench.cluster.request import IDLE_BYTES, parse_minutes
from vivit_bench.cluster.slurm import JobState
from vivit_bench.cluster.task import Outcome
from vivit_bench.errors import Stopped, UsageError, VivitBenchError

GIB = 2**30
TESTS = Path(__file__).parent


def request(**options: str) -> Request:
    return make_request(options, 2, 2 * GIB)


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ([], {}),
        (["time=5,partition=long"], {"partition": "long", "time": "5"}),
        (["gres=gpu:a100:1", "mem=4G"], {"gres": "gpu:a100:1", "mem": "4G"}),
        (["constraint=a=b", "qos=x,qos=x"], {"constraint": "a=b", "qos": "x"}),
    ],
)
def test_keys_and_values(texts: list[str], found: dict[str, str]) -> None:
    assert parse_options(texts) == found


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("partition", "'partition': write key=value, for example --slurm partition=long"),
        ("partition=", "write key=value"),
        ("", "write key=value"),
        ("queue=long", "--slurm queue=long: queue is no key; there are account, constraint, exc"),
        ("cpus=4", "--slurm cpus=4: CPUs are asked for by --threads 4"),
        ("qos=a,qos=b", "--slurm qos=b: it is a already; give one"),
        ("account=a b", "no value has spaces"),
        ("exclusive=no", "--slurm exclusive=no: write exclusive=yes"),
        ("time=soon", "--slurm time=soon: write minutes, hours:minutes:seconds or days-hours"),
        ("time=0", "--slurm time=0: write"),
        ("mem=4", "--slurm mem= 4: a unit is missing"),
        ("mem=much", "--slurm mem= 'much': not a size"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(text: str, line: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_options([text])
    assert line in str(refused.value)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        *(("90", 90), ("1:30", 2), ("12:00:00", 720), ("0:0:1", 1)),
        *(("2-0", 2880), ("1-12:30", 2190), ("1-0:0:1", 1441)),
    ],
)
def test_times_are_slurms(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


def test_memory_is_the_budget_and_what_the_processes_take() -> None:
    assert request().memory == f"{2048 + 4096}M"
    assert request(mem="2560MiB").memory == "2560M"
    assert make_request({}, 1, GIB + 1).memory == f"{1024 + 4096 + 1}M"  # rounded up
    words = r"mem=1G: the work may take 2 GiB over its idle process.*mem=6144M, or leave mem out"
    with pytest.raises(UsageError, match=words):
        request(mem="1G")


def test_cpus_must_be_said() -> None:
    with pytest.raises(UsageError, match=r"add --threads N$"):
        make_request({}, None, GIB)


def test_the_script_that_submitit_makes(tmp_path: Path) -> None:
    """Everything that is asked for is in it, in Slurm's words."""
    submitit_slurm = pytest.importorskip("submitit.slurm.slurm")
    asked = request(
        partition="long", time="12:00:00", gres="gpu:1", reservation="r", exclusive="yes"
    )
    text = submitit_slurm._make_sbatch_string(
        command="python", folder=tmp_path, **asked.parameters("a-name", "n7")
    )
    lines = {line.removeprefix("#SBATCH ") for line in text.splitlines()}
    assert {
        *("--job-name=a-name", "--dependency=singleton", "--no-requeue", "--partition=long"),
        *("--time=720", "--gres=gpu:1", "--reservation=r", "--exclusive", "--nodelist=n7"),
        *("--cpus-per-task=2", "--mem=6144M", "--signal=USR2@60"),
    } <= lines
    assert any(line.startswith("srun ") and "--cpus-per-task=2" in line for line in lines)
    short = request(time="1", nodelist="mine").parameters("a", "n7")
    assert (short["signal_delay_s"], short["nodelist"]) == (6, "mine")
    text = submitit_slurm._make_sbatch_string("python", tmp_path, **request().parameters("a", None))
    assert "--time" not in text
    assert "--nodelist" not in text


def test_two_runs_never_share_a_name(tmp_path: Path) -> None:
    jobs = [
        QueueJob(tmp_path / a / "critical_batch" / b, "label", StubTask("work", tmp_path))
        for a in ("results", "others")
        for b in ("x", "x,y", "x;y", "l" * 150)
    ]
    assert len({job.name for job in jobs}) == len(jobs)
    assert not any(set(job.name) & set(",; /") for job in jobs)
    assert jobs[0].logs == tmp_path / "results" / "slurm" / "critical_batch" / "x"
    os.symlink(tmp_path / "results", tmp_path / "link")
    linked = QueueJob(tmp_path / "link" / "critical_batch" / "x", "label", jobs[0].task)
    assert linked.name == jobs[0].name  # one run, however it is written


class Recorded(QueueListener):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ran: list[tuple[str, str]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def running(self, job: QueueJob, number: str, node: str) -> None:
        self.ran.append((number, node))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm is asked at every look, and nobody waits for a network file system."""
    monkeypatch.setattr("vivit_bench.cluster.held._ASK_SECONDS", (0.0, 0.0))
    monkeypatch.setattr("vivit_bench.cluster.held._LATE_SECONDS", 0.0)


def queue_jobs(folder: Path, *kinds: str) -> list[QueueJob]:
    return [
        QueueJob(folder / "results" / "critical_batch" / kind, kind, StubTask(kind, folder))
        for kind in kinds
    ]


def stub(job: QueueJob) -> StubTask:
    assert isinstance(job.task, StubTask)
    return job.task


def run(
    scheduler: FakeScheduler, jobs: list[QueueJob], listener: QueueListener, **options: Any
) -> dict[str, EndedJob]:
    left = iter(range(500))

    def pause(_: float) -> None:
        next(left)  # a queue that never ends is an error

    ended = run_in_queue(scheduler, jobs, request(), listener, pause=pause, **options)
    return {each.job.label: each for each in ended}


def test_what_fails_costs_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scheduler, told = FakeScheduler(), Recorded()
    ended = run(
        scheduler, queue_jobs(tmp_path, "work", "refuse", "fail", "be_told_to_stop", "more"), told
    )
    assert (ended["work"].value, ended["work"].error) == ("done", None)
    assert ended["more"].value == "done"
    log = tmp_path / "results" / "slurm" / "critical_batch" / "refuse" / "2_0_log.err"
    assert str(ended["refuse"].error) == (f"--memory-limit 1 GiB: too much (job 2, log {log})")
    assert "ZeroDivisionError: by nothing (job 3" in str(ended["fail"].error)
    assert "job 4 was stopped by SIGTERM, as Slurm cancels and pre-empts; the same command" in (
        str(ended["be_told_to_stop"].error)
    )
    assert "Traceback" in capfd.readouterr().err  # in the job's log
    assert "more: job 5 is submitted" in told.notes
    assert ("1", "n1") in told.ran


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (JobState("CANCELLED"), "job 1 was cancelled; the same command goes on with it (log "),
        (JobState("PREEMPTED"), "job 1 was preempted; the same command goes on with it (log "),
        (JobState("TIMEOUT"), "job 1 came to the end of its time (that of the partition; --slurm"),
        (JobState("OUT_OF_MEMORY"), "killed for its memory (mem=6144M); ask for more, for example "
         "--slurm mem=12288M, and the same command goes on with it"),
        (JobState("NODE_FAIL", "n3"), "job 1 lost its node n3 (NODE_FAIL); the same command"),
        (JobState("FAILED", "n3", "NonZeroExitCode"), "ended without a word (FAILED, NonZeroExit"),
        (JobState("COMPLETED"), "ended without a word (COMPLETED): Killed; the same command"),
        (None, "job 1 is not known to Slurm any more, and left no result; the same command"),
    ],
)  # fmt: skip
def test_how_slurm_ends_a_job_is_said(state: JobState | None, words: str, tmp_path: Path) -> None:
    scheduler = FakeScheduler(job1=[JobState("PENDING"), JobState("RUNNING"), state])
    log = tmp_path / "results" / "slurm" / "critical_batch" / "work" / "1_0_log.err"
    log.parent.mkdir(parents=True)
    log.write_text("N = 1 fits\nKilled\n\n")
    ended = run(scheduler, queue_jobs(tmp_path, "work", "more"), Recorded())
    said = str(ended["work"].error)
    assert words in said
    assert str(log) in said
    assert "\n" not in said
    assert ended["more"].error is None


def test_a_job_that_is_unknown_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """Accounting may know a job later than the queue forgets it; and controllers restart."""
    scheduler, told = FakeScheduler(job1=[None, None, JobState("RUNNING")] * 3), Recorded()
    scheduler.fails = {"states": 5}
    scheduler.said["job1"] += [JobState("CANCELLED")]
    ended = run(scheduler, queue_jobs(tmp_path, "work"), told)
    assert "was cancelled" in str(ended["work"].error)
    complaints = [note for note in told.notes if "Unable to contact" in note]
    assert len(complaints) == 1
    assert complaints[0].endswith("; jobs go on, and it is asked again")


def test_a_job_of_a_command_before_is_waited_for(tmp_path: Path) -> None:
    jobs = queue_jobs(tmp_path, "work", "more")
    scheduler, told = FakeScheduler(job77=[JobState("CANCELLED")]), Recorded()
    scheduler.queued = {jobs[0].name: "77"}
    ended = run(scheduler, jobs, told)
    assert "work: job 77 has it already, and is waited for" in told.notes
    assert [folder.name for folder, _ in scheduler.submitted.values()] == ["more"]
    assert "job 77 was cancelled" in str(ended["work"].error)
    with pytest.raises(UsageError, match="--fresh: job 77 has work still; scancel 77 ends it"):
        run(scheduler, jobs, told, fresh=True)


def test_a_job_that_did_less_than_is_asked_for_is_followed_by_another(tmp_path: Path) -> None:
    """Once, though Slurm lists the one before for some seconds more."""
    (job,) = queue_jobs(tmp_path, "work")
    scheduler, told = FakeScheduler(), Recorded()
    scheduler.queued, scheduler.outcomes = {job.name: "77"}, {"77": Outcome("less")}
    ended = run(scheduler, [job], told)
    assert ended["work"].value == "done"
    assert told.notes == [
        "work: job 77 has it already, and is waited for",
        "work: job 77 has done less than is asked for now",
        "work: job 1 is submitted",
    ]


@pytest.mark.parametrize(
    ("stored", "value", "words"),
    [
        ("finished all", "all", "None"),
        ("refused holds a run of other settings", None, "holds a run of other settings"),
    ],
)
def test_what_another_commands_job_leaves_is_judged(
    stored: str, value: str | None, words: str, tmp_path: Path
) -> None:
    (job,) = queue_jobs(tmp_path, "work")
    stub(job).store(stored)
    scheduler = FakeScheduler()
    scheduler.queued, scheduler.outcomes = {job.name: "77"}, {"77": Outcome("all")}
    ended = run(scheduler, [job], Recorded())
    assert (ended["work"].value, str(ended["work"].error)) == (value, words)
    assert not scheduler.submitted


class Meanwhile(Recorded):
    """Another command does something as soon as a job of this one runs."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._act = act

    def running(self, job: QueueJob, number: str, node: str) -> None:
        self._act()


def test_what_another_command_submits_meanwhile_is_waited_for(tmp_path: Path) -> None:
    first, second = queue_jobs(tmp_path, "first", "second")
    for fresh, words in ((False, "job 77 was cancelled"), (True, "--fresh: job 77 has second")):
        scheduler = FakeScheduler(job77=[JobState("CANCELLED")])
        submits = partial(scheduler.queued.update, {second.name: "77"})
        ended = run(scheduler, [first, second], Meanwhile(submits), at_once=1, fresh=fresh)
        assert [folder.name for folder, _ in scheduler.submitted.values()] == ["first"]
        assert ended["first"].value == "done"
        assert words in str(ended["second"].error)


def test_what_another_command_finishes_or_begins_meanwhile_is_not_done_again(
    tmp_path: Path,
) -> None:
    first, second, third, fourth = queue_jobs(tmp_path, "first", "second", "third", "fourth")

    def act() -> None:
        stub(second).store("finished by another")
        stub(third).store("refused damaged")
        stub(fourth).store("on n7")

    scheduler, told = FakeScheduler(), Meanwhile(act)
    ended = run(scheduler, [first, second, third, fourth], told, at_once=1)
    assert [folder.name for folder, _ in scheduler.submitted.values()] == ["first", "fourth"]
    assert (ended["second"].value, ended["second"].number) == ("by another", None)
    assert f"second: finished meanwhile: {second.folder}" in told.notes
    assert str(ended["third"].error) == "damaged"
    assert scheduler.submitted["2"][1]["nodelist"] == "n7"
    assert "fourth: job 2 is submitted, on n7, where it was begun" in told.notes


def test_a_job_returns_what_another_one_has_finished(tmp_path: Path) -> None:
    task = StubTask("fail", tmp_path)
    task.store("finished by another")
    assert run_in_process(task) == Outcome("by another")
    task.store("refused damaged")
    assert run_in_process(task) == Outcome(failed="damaged")


def test_nothing_is_submitted_while_slurm_does_not_answer(tmp_path: Path) -> None:
    scheduler = FakeScheduler()
    told = Meanwhile(lambda: scheduler.fails.update(live=3))
    jobs = queue_jobs(tmp_path, "first", "second")
    ended = run(scheduler, jobs, told, at_once=1)
    assert {label: each.value for label, each in ended.items()} == {
        "first": "done",
        "second": "done",
    }
    assert sum("Unable to contact" in note for note in told.notes) == 1
    scheduler.fails = {"live": 1}
    with pytest.raises(VivitBenchError, match="Unable to contact"):
        run(scheduler, jobs, Recorded())


def test_no_more_jobs_are_in_the_queue_than_asked_for(tmp_path: Path) -> None:
    scheduler = FakeScheduler()
    kinds = ["a", "b", "c", "d", "e"]
    assert set(run(scheduler, queue_jobs(tmp_path, *kinds), Recorded(), at_once=2)) == set(kinds)
    assert scheduler.most == 2


def test_what_slurm_refuses(tmp_path: Path) -> None:
    """The first job: all would be; one that must run on a node of its own: itself."""
    scheduler = FakeScheduler()
    scheduler.refuses = ["work"]
    jobs = queue_jobs(tmp_path, "work", "more")
    words = r"Invalid node name specified \(asked for: cpus=2, mem=6144M, time=the partition's\)"
    with pytest.raises(VivitBenchError, match=words):
        run(scheduler, jobs, Recorded())
    stub(jobs[0]).store("on n9")
    ended = run(scheduler, jobs, Recorded())
    assert "(it goes on on n9; --fresh starts over)" in str(ended["work"].error)
    assert ended["more"].value == "done"


def test_an_interruption_leaves_jobs_and_says_so(tmp_path: Path) -> None:
    class Stops(Recorded):
        def running(self, job: QueueJob, number: str, node: str) -> None:
            if number == "2":
                raise Stopped(signal.SIGINT)

    states = [JobState("RUNNING")]
    scheduler = FakeScheduler(job1=states, job2=states)
    with pytest.raises(Stopped) as stopped:
        run(scheduler, queue_jobs(tmp_path, "a", "b", "c"), Stops(), at_once=2)
    assert stopped.value.__notes__ == [
        "in Slurm's queue, and going on there: jobs 1 2; the same command waits for them, "
        "scancel 1 2 ends them and keeps what was done",
        "not submitted: 1, as the same command does",
    ]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    os.symlink(tmp_path, tmp_path / "results" / "slurm")
    with pytest.raises(UsageError, match="symbolic link"):
        run(FakeScheduler(), queue_jobs(tmp_path, "work"), Recorded())


def test_work_stops_in_order_at_slurms_signals(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys; from stub_tasks import StubTask; "
        "from vivit_bench.cluster.task import run_task; print('ready', flush=True); "
        "print(run_task(StubTask('wait', pathlib.Path(sys.argv[1]), 60.0)))"
    )
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    for number in (signal.SIGTERM, signal.SIGUSR2):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            while "S" not in status_of(process.pid):
                pass
            process.send_signal(number)
            said = process.stdout.read()
        assert process.returncode == 0
        assert f"stopped={int(number)}, kept=('half of it is kept',)" in said


def status_of(pid: int) -> str:
    """``S`` once it sleeps, with its handlers set."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    ready = caught >> (signal.SIGUSR2 - 1) & 1 and caught >> (signal.SIGTERM - 1) & 1
    return status.partition("State:")[2].split()[0] if ready else ""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes commands of Slurm's that print what they are told to."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")

    def make(name: str, out: str = "", err: str = "", code: int = 0) -> None:
        (folder / name).write_text(
            f"#!/bin/sh\necho \"$@\" >> {tmp_path}/{name}.args\nprintf '{out}'\n"
            f"printf '{err}' >&2\nexit {code}\n"
        )
        (folder / name).chmod(0o755)

    for name in ("sbatch", "srun", "squeue", "sacct"):
        make(name)
    return make


def test_states_are_asked_of_the_queue_and_then_of_accounting(
    commands: Callable[..., None], tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    slurm = Slurm()
    commands("squeue", "1|PENDING||Resources\\n2|CANCELLED|n1|None\\n")
    commands("sacct", "3|CANCELLED by 0|n2|0:15\\n4|OUT_OF_MEMORY|n2|0:125\\n")
    assert slurm.states(["1", "2", "3", "4", "5"]) == {
        "1": JobState("PENDING", "", "Resources"),
        "2": JobState("CANCELLED", "n1"),
        "3": JobState("CANCELLED", "n2", "exit code 0:15"),
        "4": JobState("OUT_OF_MEMORY", "n2", "exit code 0:125"),
    }
    assert "--jobs=3,4,5" in (tmp_path / "sacct.args").read_text()
    commands("squeue", err="slurm_load_jobs error: Invalid job id specified\\n", code=1)
    commands("sacct", err="Slurm accounting storage is disabled\\n", code=1)
    assert slurm.states(["9"]) == {}
    commands("squeue", err="slurm_load_jobs error: Unable to contact slurm controller\\n", code=1)
    with pytest.raises(VivitBenchError, match="squeue fails: Unable to contact slurm controller"):
        slurm.states(["9"])


def test_jobs_of_a_name_are_found(commands: Callable[..., None], tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    commands("squeue", "5|a-name\\n7|b-name\\n9|a-name\\n")
    assert Slurm().live(["a-name", "b-name"]) == {"a-name": "5", "b-name": "7"}
    asked = (tmp_path / "squeue.args").read_text()
    assert "--me" in asked
    assert "--name=a-name,b-name" in asked
    assert Slurm().live([]) == {}


def test_sbatch_is_asked_and_its_refusal_is_one_line(
    commands: Callable[..., None], tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    task = StubTask("work", tmp_path)
    asked = request().parameters("a-name", None)
    commands("sbatch", "Submitted batch job 17\\n")
    assert Slurm().submit(tmp_path / "logs", asked, task) == "17"
    assert (tmp_path / "logs" / "17_submitted.pkl").is_file()
    assert f"{sys.executable} -P -u -m submitit" in (
        (tmp_path / "logs" / "17_submission.sh").read_text()
    )
    commands("sbatch", err="sbatch: error: invalid partition specified: x\\nsbatch: error: Batch "
             "job submission failed: Invalid partition name specified\\n", code=1)  # fmt: skip
    words = r"Slurm refuses the job: invalid partition specified: x; Batch job submission failed"
    with pytest.raises(VivitBenchError, match=words) as refused:
        Slurm().submit(tmp_path / "logs", asked, task)
    assert "\n" not in str(refused.value)


def test_what_a_job_left_is_read(commands: Callable[..., None], tmp_path: Path) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    pytest.importorskip("submitit", reason="needs submitit: pip install 'vivit-bench[slurm]'")
    slurm = Slurm()
    assert slurm.outcome(tmp_path, "3") is None
    path = tmp_path / "3_0_result.pkl"
    path.write_bytes(cloudpickle.dumps(("success", Outcome("done"))))
    assert slurm.outcome(tmp_path, "3") == Outcome("done")
    path.write_bytes(cloudpickle.dumps(("error", "Traceback\n  x\nImportError: no torch\n")))
    assert slurm.outcome(tmp_path, "3") == Outcome(failed="ImportError: no torch")
    path.write_bytes(b"\x80garbage")
    outcome = slurm.outcome(tmp_path, "3")
    assert outcome is not None
    assert "cannot be read" in outcome.failed


def test_what_is_missing_is_named(
    commands: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin" / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(slurm_module.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match=r"there is no sbatch on this machine.*--executor local$"):
        Slurm()
    monkeypatch.setattr(slurm_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'vivit-bench\[slurm\]'$"):
        Slurm()


def test_less_memory_than_the_processes_take_leaves_the_engine_nothing() -> None:
    from vivit_bench.cli.executor import engine_request

    asked, memory = engine_request({"mem": "8GiB"}, 2, None)
    assert memory == 8 * GIB - IDLE_BYTES
    assert asked.memory == "8192M"
    asked, memory = engine_request({}, 2, GIB)
    assert (memory, asked.memory) == (GIB, "5120M")
    with pytest.raises(UsageError, match="nothing is left for the engine"):
        engine_request({"mem": "4GiB"}, 2, None)
    with pytest.raises(UsageError, match=r"add --engine-memory SIZE .* or --slurm mem=SIZE$"):
        engine_request({}, 2, None)
