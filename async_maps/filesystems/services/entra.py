"""The tokens of Microsoft Entra ID, by the library azure-identity (extra ``azure``). Blocks."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from async_maps.errors import require_extra
from async_maps.filesystems.credentials import CredentialsError
from async_maps.filesystems.services.tokens import Token

if TYPE_CHECKING:
    from typing import Any

NONE_FOUND = (
    "no Azure credentials found: run az login, or set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or "
    "AZURE_STORAGE_KEY"
)
_SCOPE = "https://storage.azure.com/.default"
_REFUSAL = re.compile(r"AADSTS\d+:[^\n]*")
"""What Entra ID answers to wrong credentials."""

_FAILURE = re.compile(r"Authentication failed: ([^\n]*)")
"""What the library says of credentials that it has found, but that did not work."""
_HOST = re.compile(r"host='([^']+)'")
"""The server in an error of urllib3."""

# Without a handler in the program, warnings of a library would be printed with tracebacks.
for _name in ("azure", "msal"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


class EntraCredentials:
    """The default credentials of the environment: of a service principal, a workload, a machine or ``az login``."""

    def __init__(self) -> None:
        self._credential: Any = None
        self._last = ""

    def token(self) -> Token:
        """Find a new token.

        Raises:
            CredentialsError: there is none.
        """
        with require_extra("az:// without AZURE_STORAGE_KEY", "azure"):
            from azure.core.exceptions import AzureError, ClientAuthenticationError
            from azure.identity import DefaultAzureCredential

        try:
            if self._credential is None:
                self._credential = DefaultAzureCredential()
            found = self._credential.get_token(_SCOPE)
            if found.token == self._last:
                # Out of the library's cache, although it is refused, or expires soon.
                self._credential.close()
                self._credential = DefaultAzureCredential()
                found = self._credential.get_token(_SCOPE)
        except ClientAuthenticationError as error:
            text = str(error)
            if refusal := _REFUSAL.search(text):
                raise CredentialsError(f"the Azure credentials are refused: {refusal[0].rstrip('. ')}") from error
            if not (failure := _FAILURE.search(text)):
                raise CredentialsError(NONE_FOUND) from error
            if host := _HOST.search(failure[1]):
                reason = f"the Azure credentials cannot be renewed: no answer from {host[1]}"
                raise CredentialsError(reason, may_pass=True, retry=True) from error
            raise CredentialsError(f"the Azure credentials cannot be used: {failure[1].rstrip('. ')}") from error
        except AzureError as error:
            first = str(error).strip().partition("\n")[0].rstrip(".")
            reason = f"the Azure credentials cannot be renewed: {first}"
            raise CredentialsError(reason, may_pass=True, retry=True) from error
        except (OSError, ValueError) as error:
            # For example a certificate that cannot be read.
            raise CredentialsError(f"the Azure credentials cannot be used: {error}") from error
        self._last = found.token
        return Token(found.token, float(found.expires_on))
