"""Fetch the benchmarks' published files, once, from an address or a Python package, and verify their sha256.

    python -m stages.assets --config results/assets/alpacaeval2/config.yaml

In: for each file its ``url``, or ``package`` and ``path`` in it; its ``sha256`` and ``licence``. Out: the files beside the configuration.
The environment variable ``ASSETS_DIR`` may name a folder that has the files: a mirror for machines without a network. It is tried first.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from omegaconf import DictConfig

from stages.lib import files
from stages.lib.errors import UserError


def fetch(name: str, asset: DictConfig, target: Path, mirror: str | None = None) -> str:
    """Put an asset at ``target``; return where it came from. UserError if it cannot be read, or has another hash than expected.

    name: the file's name
    asset: ``url``, ``package``, ``path`` and ``sha256``, as in conf/benchmark
    target: where to put it
    mirror: a folder to look into first
    """
    if mirror and (Path(mirror) / name).is_file():
        source = str(Path(mirror) / name)
    elif asset.package:
        spec = importlib.util.find_spec(asset.package)
        if spec is None or spec.origin is None:
            raise UserError(f"asset {name}: package {asset.package} is not installed; envs/*.txt has it: make setup")
        source = str(Path(spec.origin).parent / asset.path)
    else:
        source = asset.url
    with files.atomic(target) as partial:
        try:
            if "://" in source:
                with urllib.request.urlopen(source, timeout=60) as response, partial.open("wb") as file:
                    shutil.copyfileobj(response, file)
            else:
                shutil.copyfile(source, partial)
        except (OSError, urllib.error.URLError) as error:
            raise UserError(f"asset {name}: cannot read {source} ({error}); set ASSETS_DIR to a folder that has {name}") from None
        found = files.sha256(partial)
        if found != asset.sha256:
            raise UserError(
                f"asset {name} from {source} has sha256 {found}, conf/benchmark says {asset.sha256}: another version of the file"
            )
    return source


def main() -> None:
    config, folder = files.stage_config(__doc__)
    for name, asset in config.assets.items():
        fetch(name, asset, folder / name, os.environ.get("ASSETS_DIR"))
        print(f"assets: {name} ({asset.licence}), verified")
    files.write_manifest(folder, config, licences={name: asset.licence for name, asset in config.assets.items()})


if __name__ == "__main__":
    files.run(main)
