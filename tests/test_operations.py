"""configs/README.md and its example files agree with the settings, the command line and the code."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import time
import tomllib
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import botocore.session
import numpy as np
import pytest
import yaml
from botocore import xform_name
from botocore.exceptions import ClientError
from botocore.validate import validate_parameters
from pydantic import ByteSize, TypeAdapter

import async_maps as am
from async_maps.cli.commands import app
from async_maps.cli.events import Event
from async_maps.cli.metrics import RunMetrics
from async_maps.demo import seaweed
from async_maps.doctor.advice import iam_policy
from async_maps.manifest.samples import Sample
from async_maps.manifest.schema import SCHEMA
from async_maps.metrics import PipelineCollector
from async_maps.plans.commits import commit_plan
from async_maps.plans.planning import plan
from async_maps.progress import Progress
from async_maps.report.ending import DONE, SOME_FAILED, STOPPED_EARLY, WRONG_PLAN, WRONG_USE
from async_maps.shares.ray import VARIABLES as RAY_VARIABLES
from tests.support.documents import (
    ROOT,
    blocks,
    check_command,
    commands,
    defaults,
    ours_within,
    read,
    table,
    unknown_variables,
    variable,
)
from tests.support.memory import MIB, pss
from tests.support.viewing import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONFIGS = ROOT / "configs"
PAGE = "configs/README.md"
EXAMPLES = (
    "Dockerfile", "kubernetes-job.yaml", "kubernetes-plan.yaml", "slurm-array.sh", "batch-array.json", "ray-job.yaml",
    "async-maps.service", "async-maps.timer", "crontab", "prometheus-alerts.yaml", "grafana-dashboard.json",
)  # fmt: skip


def as_written(default: object) -> str:
    """A default as the table of settings has it."""
    if default is None or default == {}:
        return "none"
    if default == ():
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


def test_the_table_of_settings_is_complete_and_true() -> None:
    rows = table(PAGE, "Flag")
    flags = [argument.name for argument in app["run"].assemble_argument_collection() if argument.keys]
    found = {}
    for flag, key, name, default, values in rows:
        plain = key.removesuffix(".NAME")
        assert flag.removesuffix(".NAME") in flags
        assert (flag, name) == (f"--{key.replace('_', '-')}", variable(key))
        assert values
        is_size = re.fullmatch(r"\d+MiB", default)
        found[plain] = str(int(TypeAdapter(ByteSize).validate_python(default))) if is_size else default
    assert found == {key: as_written(default) for key, default in defaults().items()}
    assert len(rows) == len(found)


# AWS --------------------------------------------------------------------------------------------------------------


def requests_of_the_code() -> set[str]:
    """The operations of S3 that the code calls, as AWS names them."""
    operations = botocore.session.Session().get_service_model("s3").operation_names
    text = "\n".join(path.read_text() for path in (ROOT / "async_maps").rglob("*.py") if "demo" not in path.parts)
    called = set(re.findall(r"\.(\w+)\(", text)) | set(re.findall(r"get_paginator\(\"(\w+)\"\)", text))
    return {operation for operation in operations if xform_name(operation) in called}


def test_the_table_of_permissions_has_every_request_and_no_other() -> None:
    rows = table(PAGE, "Action")
    documented = {request for row in rows for request in row[1].split(", ")}
    assert documented == requests_of_the_code()
    assert all(all(row) for row in rows)


def test_the_policy_is_the_one_of_doctor_and_in_the_table() -> None:
    least, policy = (json.loads(text) for text in blocks(PAGE, "json") if "Statement" in text)
    ours: Any = json.loads(iam_policy("my-bucket", "overlays", kms_key="1234abcd-12ab-34cd-56ef-1234567890ab"))

    def actions(statements: list[dict[str, Any]]) -> set[tuple[str, str]]:
        return {
            (action, re.sub(r"(arn:aws:kms):[^:]*:[^:]*:", r"\1:*:*:", statement["Resource"]))
            for statement in statements
            for action in statement["Action"]
        }

    assert actions(policy["Statement"]) == actions(ours["Statement"])
    assert actions(least["Statement"]) == {("s3:PutObject", "arn:aws:s3:::my-bucket/overlays/*")}
    listed = {row[0] for row in table(PAGE, "Action")}
    assert {action for action, _ in actions(policy["Statement"])} <= listed


@contextmanager
def user_who_may(server: seaweed.S3Server, actions: str) -> Iterator[None]:
    """Make a user of SeaweedFS with these actions on my-bucket, and be that user."""
    weed, *flags = Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")
    ports = dict(flag.removeprefix("-").split(".port=") for flag in flags if ".port=" in flag)
    name = actions.replace(",", "").lower()
    configure = f"s3.configure -user={name} -access_key={name} -secret_key=secret -buckets=my-bucket"
    shell = [weed, "shell", f"-master=127.0.0.1:{ports['master']}", f"-filer=127.0.0.1:{ports['filer']}"]
    subprocess.run(shell, input=f"{configure} -actions={actions} -apply\n", text=True, check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", name)
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        client: Any = botocore.session.Session().create_client("s3")
        with closing(client):
            # The server hears of the user from another of its parts.
            while code_of(client.list_objects_v2, Bucket="my-bucket") == "InvalidAccessKeyId":
                time.sleep(0.05)
        yield


def code_of(request: Callable[..., object], **arguments: str) -> str:
    """The code of the error that a request ends with, or an empty one."""
    try:
        request(**arguments)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="asks Linux for the ports of the server")
def test_each_command_needs_no_more_than_the_table_says(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((8, 8)))
    manifest, settings = tmp_path / "m.sqlite", am.Settings(workers=0)
    # A server of its own, as its users stay.
    with seaweed.serve(tmp_path / "server") as server, seaweed.in_environment(server):
        asyncio.run(seaweed.create_bucket(server, "my-bucket"))
        with user_who_may(server, "Write"):
            report = am.run(tmp_path / "a.npy", "s3://my-bucket/overlays", settings=settings, manifest=manifest)
            assert (report.uploaded, report.failed) == (1, 0)
            with pytest.raises(am.AsyncMapsError, match="AccessDenied"):
                am.verify_locators(manifest)
        with user_who_may(server, "List"):
            assert am.verify_locators(manifest).is_clean
            assert am.verify_locators(manifest, deep=True).differences == {"unreadable": 1}
        with user_who_may(server, "List,Read"):
            assert am.verify_locators(manifest, deep=True).is_clean
        with user_who_may(server, "Read"), am.Viewer(manifest) as viewer:
            assert Client(viewer).get("/map/1").headers["content-type"] == "image/png"


# The example files ------------------------------------------------------------------------------------------------


def test_every_example_is_linked_and_looked_at_here() -> None:
    files = {path.name for path in CONFIGS.iterdir() if path.suffix not in {".toml", ".md"}}
    assert files == set(EXAMPLES)
    assert [name for name in EXAMPLES if f"]({name})" not in read(PAGE)] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_variable_in_an_example_exists(name: str) -> None:
    assert unknown_variables((CONFIGS / name).read_text()) == set()


def test_the_kubernetes_job_resumes_stops_and_ends() -> None:
    claim, job = yaml.safe_load_all((CONFIGS / "kubernetes-job.yaml").read_text())
    assert (claim["kind"], job["kind"]) == ("PersistentVolumeClaim", "Job")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    check_command(container["args"])
    assert container["command"] == ["async-maps"]
    # The manifest and temporary files lie where the pod may write. The kernels are in the image: with fsGroup, a group
    # may write all files of a volume, and a cache that others may write is not used.
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    writable = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    (manifest,) = (text.partition("=")[2] for text in container["args"] if text.startswith("--manifest="))
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert "NUMBA_CACHE_DIR" not in environment
    for path in (manifest, environment["TMPDIR"]):
        assert path.startswith(tuple(writable.values()))
    (volume,) = (volume for volume in pod["volumes"] if manifest.startswith(writable[volume["name"]]))
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    # Prometheus reaches the port.
    assert {"--metrics-host=0.0.0.0", f"--metrics-port={container['ports'][0]['containerPort']}"} < set(
        container["args"]
    )
    assert pod["terminationGracePeriodSeconds"] > float(environment["ASYNC_MAPS_DRAIN_TIMEOUT_S"])
    # One pod writes the manifest, and no other starts beside it.
    assert (job["spec"]["parallelism"], pod["restartPolicy"]) == (1, "Never")
    rules = [rule for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    actions = {code: rule["action"] for rule in rules for code in rule["onExitCodes"]["values"]}
    assert actions == {130: "Ignore", 143: "Ignore", WRONG_USE: "FailJob"}
    assert job["spec"]["backoffLimit"] > 0
    assert {rule["onExitCodes"]["containerName"] for rule in rules} == {container["name"]}


@pytest.mark.parametrize("name", ["kubernetes-plan.yaml", "slurm-array.sh", "ray-job.yaml"])
def test_an_example_of_plans_says_how_the_plan_is_made_run_and_committed(name: str) -> None:
    text = (CONFIGS / name).read_text()
    found = re.findall(r'^#.*?async-maps ((?:plan|run|commit) [^"\n]+)', text, re.MULTILINE)
    for command in found:
        check_command(shlex.split(command))
    assert found[0].startswith("plan ")
    assert "async-maps commit " in text


def test_the_indexed_job_runs_each_share_and_stops_for_a_wrong_plan() -> None:
    job = yaml.safe_load((CONFIGS / "kubernetes-plan.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    check_command(container["args"])
    assert container["command"] == ["async-maps"]
    assert spec["completionMode"] == "Indexed"
    assert f"--part=auto/{spec['completions']}" in container["args"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy and backoffLimitPerIndex need it
    assert spec["backoffLimitPerIndex"] > 0
    rules = [rule for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    actions = {code: rule["action"] for rule in rules for code in rule["onExitCodes"]["values"]}
    assert actions == {130: "Ignore", 143: "Ignore", WRONG_USE: "FailJob", WRONG_PLAN: "FailJob"}
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert pod["terminationGracePeriodSeconds"] > float(environment["ASYNC_MAPS_DRAIN_TIMEOUT_S"])
    (mount,) = container["volumeMounts"]
    assert environment["TMPDIR"] == mount["mountPath"]


@pytest.mark.slow
def test_the_tasks_of_a_slurm_array_run_a_plan(maps: Path, tmp_path: Path) -> None:
    text = (CONFIGS / "slurm-array.sh").read_text()
    (array,) = re.findall(r"^#SBATCH --array=(\d+)-(\d+)$", text, re.MULTILINE)
    assert int(array[0]) < int(array[1])
    for i in range(6):
        np.save(maps / f"{i}.npy", np.random.default_rng(i).random((8, 8)))
    made = plan(maps, tmp_path / "out", tmp_path / "plan", part_size=2)
    command = tmp_path / "bin" / "async-maps"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m async_maps "$@"\n')
    command.chmod(0o755)
    environment = {"PATH": f"{command.parent}:{os.environ['PATH']}", "ASYNC_MAPS_WORKERS": "0"}
    tasks = []
    for index in ("3", "4"):
        slurm = {"SLURM_ARRAY_TASK_ID": index, "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "2"}
        script = ["bash", str(CONFIGS / "slurm-array.sh"), str(tmp_path / "plan")]
        tasks.append(subprocess.Popen(script, env=os.environ | environment | slurm))
    assert [task.wait() for task in tasks] == [DONE, DONE]
    status = commit_plan(tmp_path / "plan")
    assert (status.is_complete, status.parts, status.rows, status.failures) == (True, made.parts, 6, 0)


def test_the_slurm_script_asks_for_a_plan() -> None:
    ended = subprocess.run(["bash", str(CONFIGS / "slurm-array.sh")], capture_output=True, text=True, check=False)
    assert ended.returncode != DONE
    assert "usage: sbatch slurm-array.sh PLAN" in ended.stderr


def test_the_batch_array_is_what_aws_accepts_and_stops_for_a_wrong_plan() -> None:
    definition = json.loads((CONFIGS / "batch-array.json").read_text())
    shape = botocore.session.Session().get_service_model("batch").operation_model("RegisterJobDefinition").input_shape
    assert shape is not None
    validate_parameters(definition, shape)
    known = definition["parameters"]
    arguments = [known[word.removeprefix("Ref::")] if word.startswith("Ref::") else word
                 for word in definition["containerProperties"]["command"]]  # fmt: skip
    check_command(arguments)
    assert arguments[arguments.index("--part") + 1] == "auto"
    rules = definition["retryStrategy"]["evaluateOnExit"]
    ended = {int(rule["onExitCode"]) for rule in rules if rule["action"] == "EXIT"}
    assert ended == {WRONG_USE, WRONG_PLAN}


def test_the_ray_job_runs_and_commits_a_plan() -> None:
    job = yaml.safe_load((CONFIGS / "ray-job.yaml").read_text())
    run, commit = (ours_within(words.split()) for words in job["spec"]["entrypoint"].split("&&"))
    found = [*run, *commit]
    assert [arguments[0] for arguments in found] == ["run", "commit"]
    for arguments in found:
        check_command(arguments)
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [container for group in groups for container in group["template"]["spec"]["containers"]]
    assert len({pod["image"] for pod in pods}) == 1
    for pod in pods:
        assert RAY_VARIABLES.items() <= {entry["name"]: entry["value"] for entry in pod["env"]}.items()


def test_the_units_of_systemd_resume_and_stop() -> None:
    lines = (CONFIGS / "async-maps.service").read_text().splitlines()
    unit = dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))
    (arguments,) = ours_within(unit["ExecStart"].split())
    check_command(arguments)
    (manifest,) = (text.partition("=")[2] for text in arguments if text.startswith("--manifest="))
    assert manifest.startswith(f"/var/lib/{unit['StateDirectory']}/")
    drain = re.search(r"ASYNC_MAPS_DRAIN_TIMEOUT_S=(\d+)", "\n".join(lines))
    assert drain is not None
    assert int(unit["TimeoutStopSec"]) > int(drain[1])
    assert unit["Restart"] == "on-failure"
    assert unit["SuccessExitStatus"] == "143"
    assert unit["RestartPreventExitStatus"] == str(WRONG_USE)
    timer = (CONFIGS / "async-maps.timer").read_text()
    assert "OnCalendar=" in timer


def test_the_lines_of_the_crontab_are_commands() -> None:
    found = []
    for line in (CONFIGS / "crontab").read_text().splitlines():
        if line.startswith("#") or re.match(r"\w+=", line):
            continue
        *when, command = line.split(maxsplit=5)
        assert len(when) == 5
        assert all(re.fullmatch(r"\*|\d+", field) for field in when)
        # Cron ends a command there.
        assert "%" not in command
        found += [arguments for words in commands(command) for arguments in ours_within(words.words)]
    assert [arguments[0] for arguments in found] == ["run", "verify"]
    for arguments in found:
        check_command(arguments)


def test_the_dockerfile_runs_the_command_as_nobody_special() -> None:
    text = (CONFIGS / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["async-maps"]' in text
    assert re.search(r"^USER \d+:\d+$", text, re.MULTILINE)
    (extras,) = re.findall(r"/src\[([\w,]+)\]", text)
    known = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)


# What is documented to be watched ---------------------------------------------------------------------------------


def test_exit_codes_are_those_of_the_command() -> None:
    codes = [int(code) for row in table(PAGE, "Code") for code in row[0].split(", ")]
    assert codes[:4] == [DONE, SOME_FAILED, WRONG_USE, STOPPED_EARLY]


def test_the_progress_event_has_the_fields_that_are_shown() -> None:
    (shown,) = (json.loads(text) for text in blocks(PAGE, "json") if "elapsed_s" in text)
    progress = Progress(am.Report(), None, None)
    assert list(shown) == ["time", "level", "event", *progress.as_dict()]


def test_the_table_of_events_is_complete() -> None:
    assert [name for row in table(PAGE, "Event") for name in row[0].split(", ")] == list(get_args(Event))


async def test_the_table_of_metrics_is_complete(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=0)) as pipeline:
        metrics = list(PipelineCollector({"x": pipeline}).collect())
        of_run = list(RunMetrics(pipeline, "x").collect())[len(metrics) :]
    for heading, found in (("Metric, with the label `pipeline`", metrics), ("Metric of a run", of_run)):
        names = [f"{metric.name}{'_total' if metric.type == 'counter' else ''}" for metric in found]
        assert sorted(row[0] for row in table(PAGE, heading)) == sorted(names)


def test_the_table_of_the_manifest_has_every_column() -> None:
    documented = [name for row in table(PAGE, "Column of the table `maps`") for name in row[0].split(", ")]
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(SCHEMA)
        columns = [name for _, name, *_ in database.execute("PRAGMA table_info(maps)")]
    assert sorted(documented) == sorted(columns)
    documented = [name for row in table(PAGE, "Column of the table `samples`") for name in row[0].split(", ")]
    assert sorted(documented) == sorted(Sample._fields)


# Memory -----------------------------------------------------------------------------------------------------------


def bound(maps: str, workers: int, threads: int, queue: float, png: str) -> float:
    """The formula of the page, in MiB."""
    shape = re.search(r"(\d+)x(\d+) float32", maps)
    assert shape is not None
    area = int(shape[1]) * int(shape[2]) / MIB
    array, pixels = 4 * area, area * (5 if png == "rgba" else 1)
    queues, prefetch = (4, 64 * 8 + 16) if "S3" in maps else (2, 0)
    encoding = threads * 2 * max(1, pixels)
    return 160 + workers * (80 + 2 * array + pixels) + encoding + queues * queue + prefetch


def test_the_memory_table_follows_from_the_formula() -> None:
    (formula,) = (text for text in blocks(PAGE, "text") if text.startswith("160"))
    assert formula.strip() == (
        "160 + workers x (80 + 2 x array + pixels) + encode_threads x 2 x max(1, pixels) + queues x queue_bytes"
    )
    rows = table(PAGE, "Maps")
    for maps, workers, threads, queue, png, most in rows:
        expected = bound(maps, int(workers), int(threads), float(queue.removesuffix("MiB")), png)
        assert int(most) == round(expected), maps
    assert {(row[0].split()[0], row[1]) for row in rows} >= {("2048x2048", "16")}


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux for the memory of a process")
@pytest.mark.parametrize("png", ["palette", "rgba"])
def test_a_run_stays_below_the_formula(png: str, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    first = tmp_path / "maps" / "00.npy"
    np.save(first, np.random.default_rng(0).random((2048, 2048), np.float32))
    for i in range(1, 40):
        os.link(first, first.with_name(f"{i:02}.npy"))
    flags = ["--workers=3", "--encode-threads=2", f"--png={png}", "--progress=none", "--manifest=m.sqlite"]
    process = subprocess.Popen([sys.executable, "-m", "async_maps", "run", "maps", "out", *flags], cwd=tmp_path)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(pss, family(process.pid))))
        time.sleep(0.05)
    assert process.returncode == 0
    assert peak / MIB < bound("2048x2048 float32", 3, 2, 64, png)
    # Not by an order of magnitude, which would help nobody.
    assert peak / MIB > bound("2048x2048 float32", 3, 2, 64, png) / 3
