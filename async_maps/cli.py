"""The command line: commands, signals, exit codes. The only file that touches signals or ends the process."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import cyclopts
from cyclopts import App, ArgumentCollection, Group, Parameter, validators
from pydantic import ValidationError

from async_maps.console import (
    answer,
    check_report,
    complain,
    note,
    print_failures,
    print_report,
    print_verification,
    say,
    write_report,
)
from async_maps.doctor import KOLENA_ORIGINS, diagnose
from async_maps.errors import AsyncMapsError, SettingsError, StoreError, TooManyFailuresError
from async_maps.forms import Form
from async_maps.loop import run_loop
from async_maps.progress import ProgressKind
from async_maps.settings import Settings, describe_invalid, load_settings
from async_maps.sources import STDIN_FILE

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from async_maps.doctor import Finding
    from async_maps.pipeline import Pipeline
    from async_maps.report import Report
    from async_maps.verify import Verification

DONE, SOME_FAILED, WRONG_USE = 0, 1, 2
_DEFAULT_MANIFEST = Path("async-maps.sqlite")
_TICK_S = 5.0

app = App(
    name="async-maps",
    help="Activation maps in, Kolena-ready PNG overlays in an object store out, with a locator for every one.",
    help_epilogue=(
        "Exit codes: 0 all is well, 1 something failed or differs, 2 wrong use, settings or a store that refuses, "
        "130/143 interrupted (run it again).\n\n"
        "S3 endpoint, region, profile and credentials come from the AWS environment and files, as for every AWS tool."
    ),
    default_parameter=Parameter(show_env_var=False),
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
_SETTINGS = Group(
    "Settings", help="Each is also a key of the TOML file and an environment variable: ASYNC_MAPS_PNG=rgba.", sort_key=2
)
_UNLISTED_SETTINGS = Group("Settings of async-maps run", show=False)


@app.command
def run(  # noqa: PLR0913  # one argument a flag
    source: str,
    destination: str,
    /,
    *,
    manifest: Path = _DEFAULT_MANIFEST,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    retry_failed: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    progress: ProgressKind = "auto",
    report: Path | None = None,
    config: Path | None = None,
    settings: Annotated[Settings, Parameter(name="*", group=_SETTINGS)] = Settings(),  # noqa: B008  # frozen
) -> int:
    """Turn activation maps into PNG overlays in a store; run it again to resume.

    Maps that the manifest knows as done and unchanged are skipped without a request; the others are done.

    Ctrl-C (or SIGTERM) finishes what is in flight and ends; a second one ends at once. Nothing is lost either way.

    Parameters
    ----------
    source
        A folder (searched recursively), a file or a quoted glob, of .npy, .npz, .zarr, .h5, .safetensors or .tar; the
        same in s3://bucket/prefix/; a .csv, .jsonl or .parquet with the columns name and path; - for paths on standard
        input.
    destination
        s3://bucket/prefix, file:///folder or a plain path.
    manifest
        The record of every map, an SQLite file; made if it does not exist.
    overwrite
        Do every map, also those that are done.
    retry_failed
        Do only the maps that failed before.
    dry_run
        Count what would be done, and do nothing.
    progress
        A live bar, a line or a JSON object every few seconds, or none; auto is a bar on a terminal, else lines.
    report
        Write what the run did to this file, as JSON.
    config
        Settings from this TOML file; flags and environment go before it.
    """
    from async_maps.report import Report

    if overwrite and retry_failed:
        raise SettingsError("--overwrite and --retry-failed exclude each other")
    if report is not None:
        check_report(report)
    redo = "all" if overwrite else "failed" if retry_failed else "changed"
    filled = Report()
    job = _Job(source, destination, {"manifest": manifest, "redo": redo}, settings, filled)
    try:
        code = run_loop(job.rehearse() if dry_run else job.run(progress))
    except AsyncMapsError as error:
        if filled.uploaded or filled.failed:
            print_report(filled)
        complain(error)
        if isinstance(error, StoreError):
            say(f"async-maps doctor {destination} tells what is wrong there")
        # Once the store has taken a map, the command was right, and can be run again for the rest.
        code = SOME_FAILED if filled.uploaded or isinstance(error, TooManyFailuresError) else WRONG_USE
    # Whatever becomes of the report: it is no longer the use that was wrong.
    if report is not None and not write_report(report, filled, code):
        code = code or SOME_FAILED
    return code


@app.command
def demo(
    *,
    out: Path = Path("async-maps-demo"),
    scenes: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 240,
    local: Annotated[bool, Parameter(negative="")] = False,
    serve: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Do the whole job on this machine, without an account: scenes, their saliency maps, a real S3 server, overlays.

    Makes a few hundred scenes and a saliency map of each, starts SeaweedFS on loopback, uploads their overlays as
    async-maps run does, reads every object back and compares its pixels, exports the locators, and draws overlays.png.

    Parameters
    ----------
    out
        The folder for everything it makes; a demo found there is replaced.
    scenes
        How many.
    local
        Into a folder instead of an S3 server; also what happens where the extra "demo" is not installed.
    serve
        Keep the server until Ctrl-C, and print what leads other commands in other terminals to it.
    """
    from async_maps.demo import run_demo

    if local and serve:
        raise SettingsError("--local and --serve exclude each other: a folder has no server")
    return DONE if run_demo(out, scenes=scenes, local=local, serve=serve) else SOME_FAILED


@app.command
def export(  # noqa: PLR0913  # one argument a flag
    manifest: Path,
    file: Path,
    /,
    *,
    all: Annotated[bool, Parameter(negative="")] = False,  # noqa: A002  # the flag's name
    columns: str | None = None,
    form: Annotated[Form, Parameter(name="--as")] = "plain",
    presign: float | None = None,
) -> int:
    """Write the locators of a manifest to a table.

    Parameters
    ----------
    manifest
        The SQLite file that async-maps run has written.
    file
        Its suffix says what: .csv, .parquet (extra "parquet") or .jsonl.
    all
        Also the maps that failed, with stage and error: they have no locator, unless verify has found it broken.
    columns
        Only these, in this order: name,locator,maximum.
    form
        For whom: plain; kolena for kolena.io, with BitmapMasks in the column activation_map; fiftyone with map_path and
        range, for fiftyone.Heatmap, which wants overlays made with --png gray.
    presign
        Add the column url: for so many hours, 1 to 168 (or until the AWS credentials expire, if that is sooner), it
        opens the overlay in S3 without credentials. Whoever has it can read that object: treat it as a password. On AWS
        AWS_DEFAULT_REGION, or the profile's region, must be the bucket's.
    """
    from async_maps.export import export_manifest

    names = None if columns is None else [name.strip() for name in columns.split(",")]
    count = export_manifest(manifest, file, failed=all, columns=names, form=form, presign_hours=presign)
    return DONE if answer(f"{count:,} rows in {file}") else SOME_FAILED


@app.command
def verify(  # noqa: PLR0913  # one argument a flag
    manifest: str,
    /,
    *,
    deep: Annotated[bool, Parameter(negative="")] = False,
    repair: Annotated[bool, Parameter(negative="")] = False,
    source: str | None = None,
    delete_foreign: Annotated[bool, Parameter(negative="")] = False,
    progress: ProgressKind = "auto",
    report: Path | None = None,
    config: Path | None = None,
    settings: Annotated[Settings, Parameter(name="*", group=_SETTINGS, show=False)] = Settings(),  # noqa: B008  # frozen
) -> int:
    """Say whether every locator is really there, whole, and what was sent: exit code 0 if so, 1 if anything differs.

    Lists what lies at the destination, a thousand objects a request, and compares sizes and ETags with the manifest.

    Names what is missing, truncated or another object, and PNGs among the overlays that no row knows ("foreign").

    --repair makes what is broken again, from the maps and with the settings of its run, and uploads nothing else.

    A map that has changed since gets the overlay of what is there now. An interrupted repair is completed by the next.

    All settings of async-maps run can be given here too: --concurrency, --s3.max-attempts, --workers and so on.

    Parameters
    ----------
    manifest
        The SQLite file that async-maps run has written; or a table of results, .csv, .jsonl or .parquet (extra
        "parquet"), with a column locator or Kolena's cells {"locator": ..., "data_type": ...}. To a table nothing is
        foreign, and it cannot be repaired.
    deep
        Also read every object: does it decode, has it the right bytes, size in pixels and Content-Type?
    repair
        Make what is broken again, then look again.
    source
        Where the maps are now, for --repair; by default where their run has read them.
    delete_foreign
        With --repair: delete the foreign objects: whatever is called .png anywhere below the destination, also
        overlays of another manifest, images, and overlays of maps that have failed in a later run.
    progress
        A line or a JSON object every few seconds, or none; auto and bar are lines.
    report
        Write what was found to this file, as JSON.
    config
        Settings from this TOML file; flags and environment go before it.
    """
    from async_maps.verify import Verification, repair_overlays, verify_locators

    if not repair and (delete_foreign or source is not None):
        raise SettingsError(f"{'--delete-foreign' if delete_foreign else '--source'} needs --repair")
    if report is not None:
        check_report(report)
    filled = Verification()
    if repair:
        looking = repair_overlays(
            manifest, settings=settings, deep=deep, source=source, delete_foreign=delete_foreign, verification=filled
        )
    else:
        looking = verify_locators(manifest, settings=settings, deep=deep, verification=filled)
    try:
        run_loop(_watched(looking, filled, progress))
        code = DONE if print_verification(filled) and filled.is_clean else SOME_FAILED
    except AsyncMapsError as error:
        if filled.differences:
            print_verification(filled)
        complain(error)
        code = SOME_FAILED if filled.repaired or filled.differences else WRONG_USE
    except KeyboardInterrupt:
        if repair:
            say("the same command once more does the rest")
        raise
    if report is not None and not write_report(report, filled, code):
        code = code or SOME_FAILED
    return code


@app.command
def doctor(  # noqa: PLR0913  # likewise
    destination: str,
    /,
    *,
    origin: Annotated[tuple[str, ...], Parameter(negative="")] = KOLENA_ORIGINS,
    quick: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter("--json", negative="")] = False,
    config: Path | None = None,
    settings: Annotated[Settings, Parameter(name="*", group=_UNLISTED_SETTINGS)] = Settings(),  # noqa: B008  # frozen
) -> int:
    """Can this machine write there, and can a browser read it? Each answer says what to do.

    Tries with small objects of its own, and removes them. Takes every setting that async-maps run takes, too, as flag,
    variable or file. Exit codes: 0 nothing failed (there may be warnings), 1 a failure, 2 wrong use.

    Parameters
    ----------
    destination
        s3://bucket/prefix, file:///folder or a plain path.
    origin
        Pages of this origin, such as https://app.kolena.com, are to read the overlays; may be repeated.
    quick
        Leave out the throughput.
    as_json
        A JSON object a line.
    config
        Settings from this TOML file; flags and environment go before it.
    """
    from async_maps.doctor.display import FindingDisplay, summary

    display = FindingDisplay(sys.stdout)
    told = True

    def tell(finding: Finding) -> None:
        nonlocal told
        told &= answer(json.dumps(finding._asdict()) if as_json else display.render(finding))

    findings = run_loop(diagnose(destination, settings, origins=origin, quick=quick, tell=tell))
    if not as_json:
        told &= answer(summary(findings))
    return DONE if told and not any(finding.level == "failure" for finding in findings) else SOME_FAILED


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command ``async-maps``: parse, run, exit."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    interrupted_by = signal.SIGINT

    def terminate(number: int, _: object) -> None:
        # As Ctrl-C does, it unwinds what is open, the demo's server and folders too; else the process would be gone.
        nonlocal interrupted_by
        interrupted_by = signal.Signals(number)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # So a shell starts what it puts into the background.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, terminate)
    try:
        app.config = [_settings_from_environment, *_file_settings(tokens)]
        # The parser takes a lone hyphen for an option.
        tokens = [STDIN_FILE if text == "-" else text for text in tokens]
        code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        complain(_usage_error(error))
        code = WRONG_USE
    except ValidationError as error:
        complain(describe_invalid(error))
        code = WRONG_USE
    except AsyncMapsError as error:
        complain(error)
        code = WRONG_USE
    except KeyboardInterrupt:
        say("interrupted")
        code = 128 + interrupted_by
    sys.exit(code or DONE)


class _Job:
    """A run of the command, with its signals."""

    def __init__(
        self, source: str, destination: str, options: dict[str, Any], settings: Settings, report: Report
    ) -> None:
        self._source = source
        self._destination = destination
        self._options = options
        self._settings = settings
        self._report = report
        self._signal: signal.Signals | None = None

    async def run(self, progress: ProgressKind) -> int:
        """Do it; the exit code."""
        from async_maps.pipeline import Pipeline
        from async_maps.progress import make_display, showing

        pipeline = Pipeline(self._destination, settings=self._settings)
        self._listen(pipeline)
        try:
            async with pipeline, showing(make_display(progress), self._report, pipeline.statistics, self._source):
                await pipeline.run(self._source, report=self._report, **self._options)
        except asyncio.CancelledError:
            if self._signal is None:
                raise
        told = print_report(self._report)
        if self._signal is not None:
            say(f"interrupted by {self._signal.name}; run the same command again for the rest")
            return 128 + self._signal
        return DONE if told and not self._report.failed else SOME_FAILED

    async def rehearse(self) -> int:
        """Say what would be done."""
        from async_maps.batch import dry_run

        report = self._report
        await dry_run(self._source, self._destination, settings=self._settings, report=report, **self._options)
        print_failures(report)
        told = answer(
            f"{report.planned:,} maps would be done, {report.skipped:,} skipped, {report.failed:,} would fail; "
            f"destination {report.destination}"
        )
        return DONE if told and not report.failed else SOME_FAILED

    def _listen(self, pipeline: Pipeline) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # inside asyncio.run

        def heard(number: signal.Signals) -> None:
            first, self._signal = self._signal is None, number
            if first and pipeline.is_open:
                pipeline.drain()
                loop.call_later(self._settings.drain_timeout_s, task.cancel)
                say(f"{number.name}: finishing what is in flight; once more to stop at once")
            else:
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, heard, number)


def _settings_from_environment(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """ASYNC_MAPS_PNG and the like: settings only. A variable that lingers must not, say, overwrite a million maps."""
    settings = ArgumentCollection([argument for argument in arguments if argument.keys])  # type: ignore[no-untyped-call]
    cyclopts.config.Env("ASYNC_MAPS_", command=False)(app, commands, settings)


def _file_settings(tokens: Sequence[str]) -> list[Any]:
    """The file behind ``--config``, checked, for cyclopts to put below flags and environment."""
    for index, token in enumerate(tokens):
        name, equals, value = token.partition("=")
        if name == "--config" and (equals or index + 1 < len(tokens)):
            path = value if equals else tokens[index + 1]
            given = load_settings(path).model_dump(exclude_unset=True)
            return [cyclopts.config.Dict(given, source=path, use_commands_as_keys=False)]
    return []


def _usage_error(error: cyclopts.CycloptsError) -> str:
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        return describe_invalid(cause)
    if isinstance(error, cyclopts.UnusedCliTokensError) and error.unused_tokens:
        more = f" and {len(error.unused_tokens) - 1:,} more" if len(error.unused_tokens) > 1 else ""
        return f"unexpected {error.unused_tokens[0]!r}{more}: a glob must be in quotes, such as 'maps/*.npy'"
    hint = " (write a value that begins with a hyphen as --range=-2,2)" if "requires an argument" in str(error) else ""
    return " ".join(str(error).split()) + hint


async def _watched(
    looking: Coroutine[Any, Any, Verification], verification: Verification, progress: ProgressKind
) -> None:
    """Wait for a verification, and show meanwhile how far it has come."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            note(json.dumps(verification.as_dict()) if progress == "json" else verification.line())

    ticking = None if progress == "none" else asyncio.create_task(tick())
    try:
        await looking
    finally:
        if ticking is not None:
            ticking.cancel()
            await asyncio.wait({ticking})
