"""Compiles loadgen/client/_token_reader.c where that can be done. loadgen works without, and takes more CPU.

LOADGEN_PURE=1 leaves it out: the wheel is then for any platform.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILED = "loadgen/client/_token_reader.abi3.so"


class Compile(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or sys.platform != "linux" or os.environ.get("LOADGEN_PURE") == "1":
            return
        compiler = shlex.split(os.environ.get("CC", "cc"))
        command = [*compiler, "-O2", "-shared", "-fPIC", "-I", sysconfig.get_path("include"),
                   "-o", COMPILED, "loadgen/client/_token_reader.c"]  # fmt: skip
        try:
            subprocess.run(command, cwd=self.root, check=True)
        except (OSError, subprocess.CalledProcessError) as err:
            Path(self.root, COMPILED).unlink(missing_ok=True)  # of an older source
            self.app.display_warning(f"loadgen reads tokens in Python: {err}")
            return
        build_data["artifacts"].append(COMPILED)
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
