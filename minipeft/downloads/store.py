"""Where the public weights are kept: the Hugging Face hub's own cache, or a folder of the user's.

A file gets its name only when its SHA-256 is right; until then it is an `.incomplete` file, which an interrupted
download goes on with.
"""

import errno
import itertools
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from minipeft.downloads.failures import Advice, DownloadError, explained
from minipeft.downloads.public import PUBLIC, WEIGHTS_FILE, DamagedFile, PublicModel
from minipeft.downloads.transfer import Remote, Say, file_size, look_up, pinned, stream, trying
from minipeft.files import HASHED_AT_ONCE, CheckpointError, sha256_of, write_json
from minipeft.formats.hub import CONFIG_FILE, config_json, read_config
from minipeft.progress import bytes_bar


def download(name: str, to: Path | None = None, mirror: str | None = None, say: Say = print) -> Path:
    """The weights of a public model, verified, in the hub's cache, or as a whole model in the folder `to`.

    What is there already is not brought again. `mirror` is the address of another hub; it is never shown your token.
    Raises DownloadError, CheckpointError if the file is not the one that was promised, KeyboardInterrupt; bytes that
    have come stay for the next call.
    """
    model = PUBLIC[name]
    with _explained(name, mirror, to):
        cached = _found_or_set_aside(model, say)
        if to is not None:
            return _into_folder(name, to, mirror, cached, say)
        if cached is not None:
            return cached
        remote = look_up(model, mirror, say)
        blob = _cache_folder(model) / "blobs" / remote.sha256
        with _alone(blob, say):
            if not blob.exists():
                _bring(name, remote, blob, say, _command(name, mirror))
        return _snapshot(model, remote, blob)


def adopt(name: str, file: Path, to: Path | None = None, mirror: str | None = None, say: Say = print) -> Path:
    """A copy, where `download` would put it, of a file that is here already, if it is the public model's.

    Raises FileNotFoundError if there is no such file, CheckpointError if it is another one, and what `download` raises.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}.")
    model, found = PUBLIC[name], sha256_of(file)
    with _explained(name, mirror, to):
        remote = pinned(model) or look_up(model, mirror, say)
        if found != remote.sha256:
            raise CheckpointError(
                f"{file} is not {name}'s {WEIGHTS_FILE}: its SHA-256 is {found}, not {remote.sha256}; use it as it is "
                f"with --model {file}, or bring the right one with: {_command(name)}"
            )
        target = (_cache_folder(model) / "blobs" / remote.sha256) if to is None else to / WEIGHTS_FILE
        if to is not None:
            _check_config(name, to)
        with _alone(target, say):
            if target.exists() and sha256_of(target) != found:
                if to is not None:
                    raise DownloadError(f"{target} is another file; name another folder with --to, or move it away")
                say(f"{target} was damaged and was set aside as {_set_aside(target)}")
            if not target.exists():
                _copy(file, target, remote)
        if to is not None:
            _describe(name, to)
            return target
        return _snapshot(model, remote, target)


def verify(name: str, folder: Path | None = None, mirror: str | None = None, say: Say = print) -> Path:
    """The model's file in the cache, or in `folder`, after its SHA-256 was computed and found right.

    Raises DownloadError if it is not there, CheckpointError if it is wrong: in the cache it was set aside then.
    """
    model = PUBLIC[name]
    with _explained(name, mirror, folder):
        path = folder / WEIGHTS_FILE if folder is not None else _found_or_set_aside(model, say)
        if path is None or not path.is_file():
            raise DownloadError(f"{name} is not here; bring it with: {_command(name, mirror, folder)}")
        known = model.sha256 or _name_of_blob(path) or look_up(model, mirror, say).sha256
        say(f"{path}: computing the SHA-256 of {path.stat().st_size:,} bytes")
        found = sha256_of(path)
        if found != known and folder is not None:  # perhaps a model of the user's own: it is theirs to move
            raise CheckpointError(f"{path} is not {name}'s {WEIGHTS_FILE}: its SHA-256 is {found}, not {known}")
        if found != known:
            aside = _set_aside(path.resolve())
            if path.is_symlink():
                path.unlink()
            raise CheckpointError(
                f"{path} was damaged (its SHA-256 is {found}, not {known}) and now lies in {aside}; bring it again "
                f"with: {_command(name, mirror)}"
            )
        say(f"{path}: SHA-256 {found}, as it must be")
        return path


def fetch(what: str, remote: Remote, target: Path, advice: Advice, say: Say = print) -> Path:
    """Any file whose SHA-256 and size are known, as `target`. Raises what `download` raises."""
    with explained(what, urlsplit(remote.url).netloc, advice), _alone(target, say):
        if not target.exists():
            _bring(what, remote, target, say, advice.again)
    return target


def _bring(what: str, remote: Remote, target: Path, say: Say, again: str) -> None:
    """The remote file under the name `target`, if and when its SHA-256 is right."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(target, remote)
    begun = file_size(partial)
    room = shutil.disk_usage(target.parent).free
    if remote.size - begun > room:
        raise OSError(errno.ENOSPC, f"{remote.size - begun:,} bytes are missing and {room:,} are free")
    say(f"{what}: {remote.size:,} bytes to {target}" + (f", {begun:,} are here already" if begun else ""))
    with bytes_bar(what, remote.size) as show:
        trying(lambda: stream(remote, partial, show), say, progressed=lambda: file_size(partial))
    found = sha256_of(partial)
    if found != remote.sha256 and begun:  # perhaps the first part was of another file: once more, from nothing
        say(f"{what}: the part that was here already did not fit; all of it again")
        partial.unlink()
        _bring(what, remote, target, say, again)
        return
    if found != remote.sha256:
        aside = _set_aside(partial)
        raise CheckpointError(
            f"what came as {what} has the SHA-256 {found}, not {remote.sha256}; it was not used and lies in {aside}. "
            f"Try again: {again}"
        )
    os.replace(partial, target)
    say(f"{what}: SHA-256 {found}" + (f", revision {remote.revision}" if remote.revision else ""))


def _cache_folder(model: PublicModel) -> Path:
    """The hub's cache: `blobs/` holds files by their SHA-256, `snapshots/REVISION/` links to them by name."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / ("models--" + model.repo.replace("/", "--"))


def _snapshot(model: PublicModel, remote: Remote, blob: Path) -> Path:
    """The blob's name in the snapshot, as the hub's client gives it: a link where links can be made, else the file."""
    folder = _cache_folder(model)
    named = folder / "snapshots" / remote.revision / WEIGHTS_FILE
    named.parent.mkdir(parents=True, exist_ok=True)
    if not named.exists():
        try:
            named.symlink_to(os.path.relpath(blob, named.parent))
        except OSError:
            os.replace(blob, named)
    if model.revision != remote.revision:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / model.revision).write_text(remote.revision)
    return named


def _into_folder(name: str, to: Path, mirror: str | None, cached: Path | None, say: Say) -> Path:
    """`to` as a folder of `transformers`' layout, copied from the cache or brought."""
    target, model = to / WEIGHTS_FILE, PUBLIC[name]
    _check_config(name, to)
    if cached is not None:
        remote = pinned(model) or Remote("", _name_of_blob(cached) or sha256_of(cached), cached.stat().st_size)
    else:
        remote = look_up(model, mirror, say)
    with _alone(target, say):
        if target.exists():
            if sha256_of(target) != remote.sha256:
                raise DownloadError(f"{target} is another file; name another folder with --to, or move it away")
            say(f"{target} is here already, and right")
        elif cached is not None:
            say(f"{name}: copied from {cached}")
            _copy(cached, target, remote)
        else:
            _bring(name, remote, target, say, _command(name, mirror, to))
        _describe(name, to)
    return target


def _check_config(name: str, folder: Path) -> None:
    """Raise DownloadError if the folder is none, or is already another model's."""
    if folder.exists() and not folder.is_dir():
        raise DownloadError(f"{folder} is a file; name a folder with --to")
    config = folder / CONFIG_FILE
    if config.exists() and read_config(config) != PUBLIC[name].config:
        raise DownloadError(f"{config} is another model's; name another folder with --to, or move it away")


def _describe(name: str, folder: Path) -> None:
    """The config.json that makes the folder a model; one that is there already is left alone."""
    if not (folder / CONFIG_FILE).exists():
        write_json(folder / CONFIG_FILE, config_json(PUBLIC[name].config))


def _copy(source: Path, target: Path, remote: Remote) -> None:
    """A copy that gets its name only if its SHA-256 is right."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(target, remote)
    digest = sha256()
    try:
        with open(source, "rb") as old, open(partial, "wb") as new:
            while block := old.read(HASHED_AT_ONCE):
                digest.update(block)
                new.write(block)
            new.flush()
            os.fsync(new.fileno())
        if digest.hexdigest() != remote.sha256:
            raise CheckpointError(
                f"{source} is damaged: its SHA-256 is not {remote.sha256}; nothing was copied. Check it with --verify, "
                "then type the same again"
            )
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _found_or_set_aside(model: PublicModel, say: Say) -> Path | None:
    try:
        return model.find()
    except DamagedFile as damaged:
        say(f"{damaged} It was set aside as {_set_aside(damaged.path.resolve())}.")
        damaged.path.unlink(missing_ok=True)
        return None


def _name_of_blob(path: Path) -> str | None:
    """The SHA-256 that the hub's cache files it under."""
    name = path.resolve().name
    return name if len(name) == 64 else None


def _partial(target: Path, remote: Remote) -> Path:
    return target.with_name(f".{remote.sha256[:16]}.incomplete")


def _set_aside(path: Path) -> Path:
    """Move a wrong file to where nobody takes it for a right one."""
    name = path.name.removesuffix(".incomplete")
    places = (path.with_name(f"{name}.wrong-{number}") for number in itertools.count(1))
    aside = next(place for place in places if not place.exists())
    os.replace(path, aside)
    return aside


@contextmanager
def _alone(target: Path, say: Say) -> Iterator[None]:
    """Nobody else on this machine brings `target` meanwhile; whoever comes second waits, and is told so."""
    from filelock import FileLock, Timeout
    from huggingface_hub import constants

    # In the cache, which all who could bring the same file share; beside `target` it would stay for ever.
    locks = Path(constants.HF_HUB_CACHE) / ".locks" / "minipeft"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError:  # a cache that is only read
        locks = Path(tempfile.gettempdir())
    lock = FileLock(locks / f"{sha256(str(target.resolve()).encode()).hexdigest()[:16]}.lock", mode=0o666)
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        say(f"somebody else is bringing {target.name} here; waiting for them")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _explained(name: str, mirror: str | None, to: Path | None) -> AbstractContextManager[None]:
    from huggingface_hub import constants

    otherwise = "add --mirror URL for another hub, or --from-file FILE for a file from elsewhere"
    advice = Advice(_command(name, mirror, to), otherwise, "with --to DIR or HF_HOME")
    return explained(name, constants.ENDPOINT if mirror is None else mirror, advice)


def _command(name: str, mirror: str | None = None, to: Path | None = None) -> str:
    """What to type to try again."""
    options = [*(("--to", str(to)) if to else ()), *(() if mirror is None else ("--mirror", mirror))]
    return shlex.join(["minipeft", "download", name, *options])
