"""botocore's providers of credentials, asked with time limits, and their errors in one sentence. Everything blocks."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import botocore.session
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials, RefreshableCredentials
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    MetadataRetrievalError,
    SSOError,
    TokenRetrievalError,
)

from async_maps.filesystems.blame import judge
from async_maps.filesystems.credentials import CANNOT_LOAD, NONE_FOUND, CredentialsError, Found, describe
from async_maps.filesystems.signing import corrects, sign_in_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_maps.filesystems.clock import Clock

_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S, _ATTEMPTS = 5.0, 10.0, 3
"""For STS and the portal of single sign-on. The time-outs of botocore add up to five minutes."""
_PROCESS_TIMEOUT_S = 60.0
_LONGEST_QUOTE = 200


def find_credentials(may_ask: bool, clock: Clock) -> Found:
    """Ask botocore's providers, in their order, for new credentials.

    Args:
        may_ask: whether to ask for an MFA code if there is a terminal.
        clock: the clock of signatures and expiries, which STS and the like may correct.

    Raises:
        CredentialsError: a provider is configured, but fails; or none is.
    """
    session = botocore.session.Session()
    session.set_default_client_config(
        Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        )
    )
    dates = _follow(session, clock)
    method, profile = "", "default"
    try:
        profile = session.get_config_variable("profile") or profile
        for provider in session.get_component("credential_provider").providers:
            method = provider.METHOD
            _bound(provider, may_ask)
            if (credentials := provider.load()) is not None:
                found = _freeze(credentials, method)
                if dates and found.expires_at is not None and found.expires_at <= clock.time():
                    # New credentials have not expired: this machine's clock is wrong.
                    clock.correct(dates[-1], clock.time())
                return found
        signs_in = "login_session" in session.get_scoped_config()
    except Exception as error:  # what a service or a program answers can cause any error
        raise _explain(error, describe(method, profile), profile) from error
    if signs_in:
        raise CredentialsError(
            f"profile {profile} signs in with `aws login`, which the installed botocore cannot read: "
            "install a newer boto3, or use single sign-on or access keys"
        )
    raise CredentialsError(NONE_FOUND)


def _follow(session: Any, clock: Clock) -> list[str]:
    """Let the clients of a session sign with the clock; return a list that gets the dates of the services' answers."""
    dates: list[str] = []

    def sign_again(request_dict: Any, response: Any, **_: Any) -> float | None:
        if response is not None:
            dates.append(response[0].headers.get("date", ""))
        return 0.0 if corrects(clock, request_dict, response) else None

    def before_sign(request_signer: Any, **_: Any) -> None:
        # Each client has a signer of its own, and asks before each attempt.
        if "get_auth_instance" not in vars(request_signer):
            sign_in_time(request_signer, clock)

    session.register("before-sign", before_sign)
    session.register("needs-retry", sign_again)
    return dates


def _freeze(credentials: Any, method: str) -> Found:
    if not isinstance(credentials, RefreshableCredentials):
        return Found(credentials.get_frozen_credentials(), None, method)
    refreshable: Any = credentials
    # Not get_frozen_credentials(), which asks a second time if they expire soon, and logs errors with tracebacks.
    if refreshable._frozen_credentials is None:
        refreshable._set_from_data(refreshable._refresh_using())
    frozen = ReadOnlyCredentials(
        refreshable._access_key, refreshable._secret_key, refreshable._token, refreshable._account_id
    )
    return Found(frozen, refreshable._expiry_time.timestamp(), method)


def _bound(provider: Any, may_ask: bool) -> None:
    """Make a provider ask only for what it may, and let no program hang."""
    if hasattr(provider, "_popen"):
        provider._popen = _Program
    if hasattr(provider, "_prompter"):
        provider._prompter = _ask if may_ask else _refuse_to_ask
    if (builder := getattr(provider, "_profile_provider_builder", None)) is not None:
        create: Callable[..., Any] = builder._create_process_provider

        def create_bounded(*arguments: Any, **options: Any) -> Any:
            created = create(*arguments, **options)
            created._popen = _Program
            return created

        builder._create_process_provider = create_bounded


def _ask(prompt: str) -> str:
    if not _has_terminal():
        _refuse_to_ask(prompt)
    return getpass.getpass(prompt)


def _refuse_to_ask(_prompt: str) -> str:
    why = "which is asked for only at the start" if _has_terminal() else "and there is no terminal to ask for it"
    raise CredentialsError(
        f"the role needs an MFA code, {why}: "
        "run `aws configure export-credentials --format env`, and set the variables that it prints"
    )


def _has_terminal() -> bool:
    with suppress(OSError, ValueError, AttributeError):
        return sys.stdin.isatty() and sys.stderr.isatty()
    return False


class _Program(subprocess.Popen[bytes]):
    """A credential_process, which reads nothing from standard input and is ended after a time."""

    def __init__(self, command: list[str], **options: Any) -> None:
        # In a group of its own its children can be ended, too; but then it cannot ask on a terminal.
        group = None if _has_terminal() else 0
        self._has_group = group is not None
        self._is_ended = False
        _running.add(self)
        super().__init__(command, stdin=subprocess.DEVNULL, process_group=group, **options)
        if self._is_ended:  # while it started
            self.kill_all()

    def communicate(self, input: bytes | None = None, timeout: float | None = None) -> tuple[bytes, bytes]:  # noqa: A002  # the name in subprocess.Popen
        try:
            out, err = super().communicate(input, timeout or _PROCESS_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.end()
            raise CredentialsError(
                f"credential_process did not end within {_PROCESS_TIMEOUT_S:g} s", may_pass=True, retry=True
            ) from None
        except BaseException:
            self.end()
            raise
        finally:
            _running.discard(self)
        if self.returncode:
            last = (err.decode(errors="replace").strip().splitlines() or ["it printed no error"])[-1]
            raise CredentialsError(
                f"credential_process failed with exit code {self.returncode}: {_quote(last)}", retry=True
            )
        return out, err

    def end(self) -> None:
        """Kill the program, and its children if that is possible."""
        self.kill_all()
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()
        self.wait()

    def kill_all(self) -> None:
        """Send the signals; the thread that waits for the program then goes on."""
        self._is_ended = True
        if getattr(self, "pid", None) is None:  # it starts now
            return
        with suppress(ProcessLookupError):
            if self._has_group:
                os.killpg(self.pid, 9)
            else:
                self.kill()


_running: WeakSet[_Program] = WeakSet()


def end_programs() -> None:
    """End the programs that a thread of this process waits for: nobody needs their credentials any more."""
    for program in list(_running):
        program.kill_all()


def _explain(error: Exception, source: str, profile: str) -> CredentialsError:
    """Return one sentence for an error of a provider. What a service answered with success is never quoted."""
    verdict = judge(error)
    may_pass, retry = verdict.may_pass, verdict.retry
    if isinstance(error, CredentialsError):
        reason = str(error)
    elif isinstance(error, ClientError):
        detail = error.response.get("Error", {})
        said = _quote(str(detail.get("Message") or "")).rstrip(".")
        reason = f"{error.operation_name} is refused with {detail.get('Code')}{said and f': {said}'}"
    elif isinstance(error, SSOError | TokenRetrievalError):
        reason = f"the sign-on has expired: run `aws sso login --profile {profile}`"
    elif isinstance(error, CredentialRetrievalError | MetadataRetrievalError):
        reason = _quote(str(error.kwargs.get("error_msg") or error))
        # Of the container's service: no answer, or an error of its own.
        may_pass = retry = any(words in reason for words in ("response 5", "response 429", "Received error"))
    elif isinstance(error, BotoCoreError):
        # Not the words of the verdict, which are about the store.
        reason = _quote(str(error))
    elif isinstance(error, OSError):
        # A program or a file that does not exist.
        may_pass = retry = False
        named = f"{error.filename}: " if error.filename else ""
        reason = f"{named}{error.strerror or type(error).__name__}"
    else:
        reason, may_pass, retry = "the answer does not have the form of credentials", False, False
    return CredentialsError(f"{CANNOT_LOAD} ({source}): {reason}", may_pass=may_pass, retry=retry)


def _quote(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."
