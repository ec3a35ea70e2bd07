"""The jars of broker and registry: fetched once, by coordinate, each checked against jars.lock.

    {cache}/jars/<artifact>-<version>.jar     Kafka's class path
    {cache}/registry/<sha256>/                the registry, unpacked

Both are complete or absent: files are made under {cache}/fetch-* and moved when they are right.
"""

import contextlib
import fcntl
import hashlib
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from streams.errors import BadConfiguration, Unreachable
from tools.supervisor import explained, write_atomically

LOCK: Final = Path(__file__).with_name("jars.lock")
KAFKA_VERSION: Final = "4.3.1"
REGISTRY_VERSION: Final = "3.0.9"
KAFKA_ROOTS: Final = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}",
)
# Kafka logs through slf4j 1; without a binding it says nothing at all. Not a root: its pom manages
# the versions of other jars too (jackson), and Kafka's own shall hold.
BINDING: Final = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"
REGISTRY: Final = f"io.apicurio:apicurio-registry-app:{REGISTRY_VERSION}:all:tar.gz"
UNPACKED: Final = "!/"  # after the coordinate of an archive: hash and size of its content
THREADS: Final = 8
TRIES: Final = 3
_HEAD: Final = """\
# What broker and registry are made of; written by `roster jars --relock`.
# coordinate (group:artifact:version[:classifier:packaging]), sha256, bytes
# !/ after the coordinate of an archive: its content, hashed as `sha256  name` lines by name
"""


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock. bytes_: size of the file (of the content, for an unpacked archive)."""

    coordinate: str
    sha256: str
    bytes_: int

    def path(self, cache: Path) -> Path:
        """Where it lies in the cache."""
        if self.coordinate.endswith(UNPACKED):
            return cache / "registry" / self.sha256[:16]
        _, artifact, version, *rest = self.coordinate.split(":")
        classifier, packaging = rest or ("", "jar")
        suffix = f"-{classifier}" if classifier else ""
        return cache / "jars" / f"{artifact}-{version}{suffix}.{packaging}"

    def present(self, cache: Path) -> bool:
        """Existence and size only, for quick starts; `damaged` hashes."""
        path = self.path(cache)
        if self.coordinate.endswith(UNPACKED):
            return path.is_dir()
        try:
            return path.stat().st_size == self.bytes_
        except OSError:
            return False

    def damaged(self, cache: Path) -> bool:
        """Whether content and lock differ. Reads the whole file."""
        path = self.path(cache)
        try:
            return (tree_sha256(path)[0] if path.is_dir() else sha256(path)) != self.sha256
        except OSError:
            return True


def lock() -> list[Jar]:
    """The lines of jars.lock."""
    lines = (line.split() for line in LOCK.read_text(encoding="utf-8").splitlines())
    return [Jar(words[0], words[1], int(words[2])) for words in lines if words and words[0] != "#"]


def installed() -> list[Jar]:
    """What lies in a complete cache: all but the archive, which is removed once unpacked."""
    return [jar for jar in lock() if not jar.coordinate.endswith("tar.gz")]


def class_path(cache: Path) -> str:
    """Kafka's class path, in the order of the lock."""
    return ":".join(str(j.path(cache)) for j in installed() if not j.coordinate.endswith(UNPACKED))


def registry_home(cache: Path) -> Path:
    """Folder of the unpacked registry."""
    return next(j.path(cache) for j in installed() if j.coordinate.endswith(UNPACKED))


def fetch(cache: Path, say: Callable[[str], None] = print) -> bool:
    """Completes the cache; True if something had to be fetched. A complete one costs about 2 ms.

    Raises BadConfiguration if a file is not what the lock says or cannot be written, Unreachable
    if it cannot be fetched.
    """
    if all(jar.present(cache) for jar in installed()):
        return False
    with explained(cache), alone(cache):
        locked = lock()
        content = next(jar for jar in locked if jar.coordinate.endswith(UNPACKED))
        missing = [
            jar
            for jar in locked
            if not (content if jar.coordinate.endswith("tar.gz") else jar).present(cache)
            and jar is not content
        ]
        if not missing:  # another process fetched them while we waited
            return False
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as temporary:
            _download(missing, Path(temporary), cache, say)
            archive = next((j.path(cache) for j in missing if j.coordinate.endswith("gz")), None)
            if archive is not None:
                _unpack(archive, content, Path(temporary), cache)
    return True


def relock(say: Callable[[str], None] = print) -> None:
    """Resolves the coordinates anew and writes jars.lock. Takes about a minute."""
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        context = _context(temporary / "maven")
        say(f"resolving {', '.join(KAFKA_ROOTS)} ...")
        inputs, further = context.resolver.resolve(
            [context.create_dependency(root) for root in KAFKA_ROOTS]
        )
        coordinates = {
            f"{d.groupId}:{d.artifactId}:{d.version}"
            + (f":{d.classifier}:{d.type}" if d.classifier else "")
            for d in (*inputs, *further)
            if d.scope not in {"test", "provided"} and not d.optional
        }
        wanted = [Jar(c, "", 0) for c in (*sorted({*coordinates, BINDING}), REGISTRY)]
        if len({jar.path(temporary) for jar in wanted}) != len(wanted):
            raise BadConfiguration("two jars of the class path bear the same file name")
        say(f"fetching {len(wanted)} files ...")
        with ThreadPoolExecutor(THREADS) as pool:
            files = list(pool.map(lambda jar: _artifact(context, jar.coordinate).resolve(), wanted))
        lines = [
            f"{j.coordinate} {sha256(f)} {f.stat().st_size}"
            for j, f in zip(wanted, files, strict=True)
        ]
        _extract(files[-1], temporary / "content")
        digest, size = tree_sha256(temporary / "content")
        lines.append(f"{REGISTRY}{UNPACKED} {digest} {size}")
        write_atomically(LOCK, _HEAD + "\n".join(lines) + "\n")
        say(f"{LOCK.name}: {len(lines)} lines")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(folder: Path) -> tuple[str, int]:
    """Digest over `sha256  name` of all files, sorted by name, and the sum of their sizes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    lines = [f"{sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest(), sum(p.stat().st_size for p in files)


@contextlib.contextmanager
def alone(cache: Path) -> Iterator[None]:
    """One writer at a time per cache; also removes what a killed one left."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "fetch.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in cache.glob("fetch-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _download(
    missing: Iterable[Jar], temporary: Path, cache: Path, say: Callable[[str], None]
) -> None:
    jars = sorted(missing, key=lambda jar: -jar.bytes_)  # the longest first: it sets the time
    total = sum(jar.bytes_ for jar in jars)
    what = f"{len(jars)} files, {total / 1e6:.0f} MB, of Kafka and the schema registry"
    with _progress(what, total, say) as advance:
        context = _context(temporary / "maven", advance)
        pool = ThreadPoolExecutor(THREADS)
        try:
            for done in [pool.submit(_fetch_one, context, jar, cache) for jar in jars]:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _fetch_one(context: Any, jar: Jar, cache: Path) -> None:
    import requests

    artifact = _artifact(context, jar.coordinate)
    for attempt in range(1, TRIES + 1):
        try:
            file: Path = artifact.resolve()
            break
        except (requests.RequestException, RuntimeError) as error:
            artifact.cached_path.unlink(missing_ok=True)
            if attempt == TRIES:
                raise Unreachable(
                    f"{jar.coordinate} cannot be fetched ({type(error).__name__}): check the"
                    " network, or set ROSTER_KAFKA and ROSTER_REGISTRY to use your own cluster"
                ) from None
            time.sleep(attempt)
    found = sha256(file)
    if found != jar.sha256:
        file.unlink()
        raise BadConfiguration(
            f"{jar.coordinate} is not what jars.lock says (sha256 {found[:12]}..., expected"
            f" {jar.sha256[:12]}...); it was removed: try again, or see who alters your downloads"
        )
    target = jar.path(cache)
    target.parent.mkdir(parents=True, exist_ok=True)
    file.replace(target)


def _unpack(archive: Path, content: Jar, temporary: Path, cache: Path) -> None:
    _extract(archive, temporary / "content")
    if tree_sha256(temporary / "content")[0] != content.sha256:
        raise BadConfiguration(f"{content.coordinate} is not what jars.lock says")
    target = content.path(cache)
    target.parent.mkdir(parents=True, exist_ok=True)
    (temporary / "content").rename(target)
    archive.unlink()


def _extract(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):  # from 3.11.4 on
            tar.extractall(target, filter="data")
        else:
            tar.extractall(target)


def _context(repository: Path, advance: Callable[[int], None] | None = None) -> Any:
    """A Maven context that touches no folder but `repository`."""
    from jgo.maven import MavenContext, PythonResolver

    @contextlib.contextmanager
    def count(_name: str, _size: int) -> Iterator[Callable[[int], None]]:
        assert advance is not None
        yield advance

    resolver = PythonResolver(progress_callback=count if advance else None)
    return MavenContext(resolver=resolver, repo_cache=repository, local_repos=[], timeout=60)


def _artifact(context: Any, coordinate: str) -> Any:
    group, artifact, version, *rest = coordinate.split(":")
    component = context.project(group, artifact).at_version(version)
    return component.artifact(*rest) if rest else component.artifact()


@contextlib.contextmanager
def _progress(what: str, total: int, say: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
    """One bar for all files; on something that is no terminal a line at begin and end."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        say(f"fetching {what} ...")
        began = time.monotonic()
        yield lambda _bytes: None
        say(f"fetched in {time.monotonic() - began:.0f} s")
        return
    columns = ("fetching", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
