"""Stand-ins on loopback for the services that give AWS credentials: STS, single sign-on, IMDS, ECS and a program.

They give the keys of the real S3 server, which checks signatures.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qs

import botocore.credentials
import botocore.tokens

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

    from async_maps.demo.seaweed import S3Server

Mode = Literal["good", "refused", "busy", "garbage", "silent", "held"]
SECRETS = {"sso": "SSO-ACCESS-TOKEN-SECRET", "web": "WEB-IDENTITY-TOKEN-SECRET", "garbage": "GARBAGE-WITH-A-SECRET"}
_ROLE = "arn:aws:iam::123456789012:role/tested"
_OF_IMDS = {"/latest/api/token": "imds-token", "/latest/meta-data/iam/security-credentials/": "role"}
_START_URL = "https://sign-in.example/start"


class Services:
    """The state of the services.

    Attributes:
        mode: how they answer; ``silent`` waits until the test is over.
        asked: the requests for credentials.
        expires_in: the life of the credentials.
        endpoint: the URL of all of them.
    """

    def __init__(self, server: S3Server, folder: Path) -> None:
        self.mode: Mode = "good"
        self.asked: list[str] = []
        self.expires_in = timedelta(hours=1)
        self.endpoint = ""
        self.over = threading.Event()
        self.folder = folder
        self._keys = (server.access_key, server.secret_key)

    @property
    def expiry(self) -> datetime:
        return datetime.now(UTC) + self.expires_in

    def answer(self, path: str, body: str) -> tuple[int, str]:
        """Return the status and the body for a request."""
        if (known := _OF_IMDS.get(path)) is not None:
            return 200, known
        self.asked.append(parse_qs(body).get("Action", [path])[0])
        if self.mode == "silent":
            self.over.wait()
        if self.mode == "garbage":
            return 200, SECRETS["garbage"]
        of_sts = path == "/"
        if self.mode != "good":
            status, code = (503, "ServiceUnavailable") if self.mode == "busy" else (403, "AccessDenied")
            xml = f"<ErrorResponse><Error><Code>{code}</Code><Message>not for you</Message></Error></ErrorResponse>"
            if path.startswith("/federation") and status == 403:
                # The portal answers like this to a sign-on that is over.
                status, code = 401, "UnauthorizedException"
            return status, xml if of_sts else json.dumps({"__type": code, "message": "not for you"})
        key, secret = self._keys
        if of_sts:
            name = self.asked[-1]
            given = (
                f"<AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken/>"
                f"<Expiration>{self.expiry.isoformat()}</Expiration>"
            )
            result = f"<{name}Result><Credentials>{given}</Credentials></{name}Result>"
            return 200, f"<{name}Response>{result}</{name}Response>"
        if path.startswith("/federation"):
            millis = int(self.expiry.timestamp() * 1000)
            given_json = {"accessKeyId": key, "secretAccessKey": secret, "sessionToken": "", "expiration": millis}
            return 200, json.dumps({"roleCredentials": given_json})
        return 200, json.dumps(self._plain("Token"))

    def _plain(self, token: str) -> dict[str, object]:
        key, secret = self._keys
        expiry = self.expiry.strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"AccessKeyId": key, "SecretAccessKey": secret, token: "", "Expiration": expiry, "Version": 1}

    # Environments ---------------------------------------------------------------------------------------------------

    def use(self, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Set up the environment for one of :data:`PROVIDERS`."""
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name, raising=False)
        profile = getattr(self, f"_{provider}")(monkeypatch)
        (self.folder / "config").write_text(f"[profile tested]\n{profile}\n" if profile else "")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(self.folder / "config"))
        if profile:
            monkeypatch.setenv("AWS_PROFILE", "tested")
        for service in ("STS", "SSO", "SSO_OIDC"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", self.endpoint)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false" if provider == "imds" else "true")

    def _web_identity(self, monkeypatch: pytest.MonkeyPatch) -> str:
        (self.folder / "token").write_text(SECRETS["web"])
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(self.folder / "token"))
        monkeypatch.setenv("AWS_ROLE_ARN", _ROLE)
        return ""

    def _assume_role(self, _: pytest.MonkeyPatch) -> str:
        # Keys in the environment would come first.
        source = "aws_access_key_id = source-key\naws_secret_access_key = source-secret"
        return f"role_arn = {_ROLE}\nsource_profile = source\n# mfa\n[profile source]\n{source}"

    def _mfa(self, monkeypatch: pytest.MonkeyPatch) -> str:
        return self._assume_role(monkeypatch).replace("# mfa\n", "mfa_serial = arn:aws:iam::123456789012:mfa/tested\n")

    def _sso(self, monkeypatch: pytest.MonkeyPatch) -> str:
        cache = self.folder / "sso"
        cache.mkdir(exist_ok=True)
        # They are set when botocore is imported.
        monkeypatch.setattr(botocore.credentials.SSOProvider, "_SSO_TOKEN_CACHE_DIR", str(cache))
        monkeypatch.setattr(botocore.tokens.SSOTokenProvider, "_SSO_TOKEN_CACHE_DIR", str(cache))
        self.sign_on(datetime.now(UTC) + timedelta(hours=8))
        return (
            "sso_session = tested\nsso_account_id = 123456789012\nsso_role_name = tested\n"
            f"[sso-session tested]\nsso_region = us-east-1\nsso_start_url = {_START_URL}"
        )

    def sign_on(self, until: datetime) -> None:
        """Write what ``aws sso login`` writes."""
        name = hashlib.sha1(b"tested", usedforsecurity=False).hexdigest()
        registered = {"clientId": "id", "clientSecret": "client-secret", "refreshToken": "refresh-secret"}
        token = {
            "startUrl": _START_URL, "region": "us-east-1", "accessToken": SECRETS["sso"],
            "expiresAt": until.isoformat(), "registrationExpiresAt": "2099-01-01T00:00:00Z", **registered,
        }  # fmt: skip
        (self.folder / "sso" / f"{name}.json").write_text(json.dumps(token))

    def _imds(self, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", self.endpoint)
        # A busy machine may need more than a second.
        monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "20")
        return ""

    def _ecs(self, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{self.endpoint}/ecs")
        return ""

    def _process(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """A program that asks the stand-in, as those of companies ask their services."""
        program = self.folder / "program"
        program.write_text(
            "#!/bin/sh\n"
            f"echo $$ >> {self.folder}/asked\n"
            f'case "$(cat {self.folder}/mode)" in\n'
            f"good) cat {self.folder}/answer ;;\n"
            f'garbage) echo "{SECRETS["garbage"]}" ;;\n'
            "silent) sleep 600 ;;\n"
            f"held) until grep -q good {self.folder}/mode; do sleep 0.05; done; cat {self.folder}/answer ;;\n"
            'busy) echo "no connection" >&2; exit 3 ;;\n'
            'refused) echo "not for you" >&2; exit 4 ;;\n'
            "esac\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.set_program()
        return f"credential_process = {program}"

    def set_program(self) -> None:
        """Tell the program the mode; it reads both files at any time."""
        for name, text in (("answer", json.dumps(self._plain("SessionToken"))), ("mode", self.mode)):
            (self.folder / "new").write_text(text)
            (self.folder / "new").replace(self.folder / name)

    def is_running(self) -> bool:
        """Whether the program, or a child of it, is running."""
        try:
            os.killpg(int((self.folder / "asked").read_text().split()[-1]), 0)
        except ProcessLookupError:
            return False
        return True

    def count(self) -> int:
        """Return how often credentials were asked for."""
        programs = self.folder / "asked"
        return len(self.asked) + (len(programs.read_text().splitlines()) if programs.exists() else 0)


PROVIDERS = ("web_identity", "assume_role", "sso", "imds", "ecs", "process")


@contextmanager
def serving(server: S3Server, folder: Path) -> Iterator[Services]:
    """Run the services."""
    services = Services(server, folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            status, text = services.answer(self.path.partition("?")[0], body)
            self.send_response_only(status)
            self.send_header("Date", self.date_time_string())
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_PUT = do_POST = answer  # noqa: N815  # the names that http.server wants

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        httpd.block_on_close = False
        httpd.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that leave are part of the tests
        serving_thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05})
        serving_thread.start()
        services.endpoint = f"http://127.0.0.1:{httpd.server_address[1]}"
        try:
            yield services
        finally:
            services.over.set()
            httpd.shutdown()
            serving_thread.join()
