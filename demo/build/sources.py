"""Fetch the pinned packages into a cache folder outside the repository, by package name and version.

Only the ordinary clients are used (`npm pack`, `pip download`, `apt-get download`), nothing is installed and no
script of a package is run: the archives are unpacked and read. About 900 MB and a few minutes when cold.

    python -m demo.build.sources --cache DIR
"""

import argparse
import subprocess
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demo.build.packages import DEBIAN, NPM, PIP


def npm_folder(cache: Path, name: str) -> Path:
    """Where the unpacked npm package `name` lies in the cache."""
    return cache / "npm" / name.replace("/", "__")


def deb_folder(cache: Path, name: str) -> Path:
    """Where the file tree of the Debian package `name` lies in the cache."""
    return cache / "deb" / name


def wheel(cache: Path, name: str) -> Path:
    """The one wheel of the Python package `name` in the cache."""
    (path,) = (cache / "pip").glob(f"{name.replace('-', '_')}-*.whl")
    return path


def fetch_npm(cache: Path, name: str, version: str) -> None:
    folder = npm_folder(cache, name)
    if folder.exists():
        return
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        command = [
            "npm",
            "pack",
            f"{name}@{version}",
            "--silent",
            "--ignore-scripts",
            "--pack-destination",
            scratch,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(Path(scratch) / "out", filter="data")
        (top,) = (Path(scratch) / "out").iterdir()  # "package" by custom, not by rule
        folder.parent.mkdir(parents=True, exist_ok=True)
        top.rename(folder)


def fetch_pip(cache: Path, name: str, version: str) -> None:
    if not list((cache / "pip").glob(f"{name.replace('-', '_')}-{version}-*.whl")):
        command = [
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary",
            ":all:",
            "-d",
            str(cache / "pip"),
        ]
        subprocess.run([*command, f"{name}=={version}"], check=True)


def fetch_deb(cache: Path, name: str, version: str) -> None:
    """Needs a Debian system whose package lists are fresh (`apt-get update`)."""
    folder = deb_folder(cache, name)
    if folder.exists():
        return
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        subprocess.run(["apt-get", "download", "-qq", f"{name}={version}"], check=True, cwd=scratch)
        (archive,) = Path(scratch).glob("*.deb")
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "-x", str(archive), f"{scratch}/out"], check=True)
        (Path(scratch) / "out").rename(folder)


def fetch_all(cache: Path, *, num_threads: int = 6) -> None:
    """Fetch whatever the cache lacks. Safe to run again after a failure: a folder appears only when
    complete."""
    cache.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(num_threads) as pool:
        jobs = [pool.submit(fetch_npm, cache, *item) for item in NPM.items()]
        jobs += [pool.submit(fetch_deb, cache, *item) for item in DEBIAN.items()]
        for item in PIP.items():
            fetch_pip(cache, *item)
        failed = [job.exception() for job in jobs if job.exception()]
    if failed:
        raise RuntimeError("could not fetch:\n" + "\n".join(map(str, failed)))


def add_cache_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", type=Path, required=True, help="folder for packages, outside the repository")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_cache_argument(parser)
    fetch_all(parser.parse_args().cache.resolve())
