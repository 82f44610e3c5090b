"""A job that is shared out in parts, whose planner, shares and store are killed: ``python -m bench kills --plan``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from bench.check_plan import opened
from bench.kills import EARLIEST, LATEST, LONGEST_WAIT_S, POLL_S, KilledJob, kill, noise, write_maps
from bench.measure import BUCKET

if TYPE_CHECKING:
    import subprocess

_SHARES, _PARTS = 4, 50
_DISTURBANCES = (*("share",) * 3, "store")
_FILES, _FILE_SHARE = 3_000, 20
"""The maps that are files of their own: the share of all maps, and the smallest number."""
_PLANNERS = 50
"""The attempts to kill a planner before it has made its plan."""


class KilledPlan(KilledJob):
    """Maps, a store, a run in one process, and a plan whose planner and shares are killed.

    The plan lies in the bucket if the store keeps objects; else in a folder.
    """

    disturbed = f"with {_SHARES} shares and {1 + len(_DISTURBANCES)} kills"

    def run(self) -> float:
        """Kill a planner, change the maps, and make the plan; then run the job in one process, undisturbed.

        Raises:
            RuntimeError: each planner has made its plan before it was killed.
        """
        self._plan = self._killed_planner()
        self._change_maps()
        self._end(self._make())
        return super().run()

    def run_killed(self) -> float:
        """Run all shares, disturb them at random moments until they are complete, and return their seconds.

        Raises:
            RuntimeError: a share ended wrongly.
        """
        began = time.monotonic()
        moments = sorted(self._chance.uniform(EARLIEST, LATEST) * _PARTS for _ in _DISTURBANCES)
        shares = {number: self._share(number) for number in range(1, _SHARES + 1)}
        try:
            for moment, disturbance in zip(moments, self._chance.sample(_DISTURBANCES, len(moments)), strict=True):
                self._wait_for_parts(moment, shares)
                print(f"after {self._committed()} parts, the {disturbance} is killed", flush=True)
                if disturbance == "store":
                    self._store.restart()
                else:
                    number = self._chance.choice([*shares])
                    kill(shares[number])
                    shares[number] = self._share(number)
            for share in shares.values():
                self._end(share)
            self._end(self._command("commit", self._plan))
        finally:
            for share in shares.values():
                kill(share)
        return time.monotonic() - began

    def check(self) -> tuple[int, str]:
        """Compare everything, and return the exit code and the output of ``bench.check_plan``."""
        return self._compared("bench.check_plan", self._plan, f"s3://{BUCKET}/parts")

    def _write_maps(self) -> None:
        # One stack, which is large enough to be shared out by its maps.
        files = min(self._count, max(_FILES, self._count // _FILE_SHARE))
        write_maps(self._source, self._count, files, 1, np.float32)

    def _killed_planner(self) -> str:
        """Kill a planner when it has written a random number of part lists, and return the address of its plan."""
        for number in range(_PLANNERS):
            self._plan = self._store.plan_address(self._place, f"plan-{number}")
            lists = self._chance.randrange(_PARTS // 2)
            planner = self._make()
            while planner.poll() is None and len(self._names("parts/")) <= lists:
                time.sleep(POLL_S / 10)
            kill(planner)
            if not self._names("plan.json"):
                print(f"after {len(self._names('parts/'))} part lists, the planner is killed", flush=True)
                return self._plan
        raise self._error(f"{_PLANNERS} planners made their plans before they were killed")

    def _change_maps(self) -> None:
        """Replace a map, delete one, and add one."""
        for number, file in enumerate(sorted((self._source / "files").iterdir())[1:3]):
            file.unlink()
            if number:
                np.save(file, noise(2 * self._count, 2)[1])
        np.save(self._source / "files" / "added.npy", noise(2 * self._count, 1)[0])

    def _make(self) -> subprocess.Popen[bytes]:
        size = -(-self._count // _PARTS)
        destination = f"s3://{BUCKET}/parts"
        return self._command("plan", self._source, destination, "--to", self._plan, "--part-size", size)

    def _share(self, number: int) -> subprocess.Popen[bytes]:
        command = ("run", "--plan", self._plan, "--part", f"{number}/{_SHARES}", "--progress", "none")
        return self._command(*command, *self._rate)

    def _command(self, *arguments: object) -> subprocess.Popen[bytes]:
        return self._launch("-m", "async_maps", *arguments)

    def _wait_for_parts(self, moment: float, shares: dict[int, subprocess.Popen[bytes]]) -> None:
        while (found := self._committed()) < moment:
            if ended := [number for number, share in shares.items() if share.poll() is not None]:
                raise self._error(f"the shares {ended} ended after {found} parts")
            time.sleep(POLL_S)
        time.sleep(self._chance.uniform(0, LONGEST_WAIT_S))

    def _committed(self) -> int:
        return len(self._names("done/"))

    def _names(self, part: str) -> list[str]:
        return [name for name in opened(self._plan, self._store.environment()).names() if part in name]
