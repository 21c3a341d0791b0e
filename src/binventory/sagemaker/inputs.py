"""What a job reads besides its spec: its bins and the files that its config names, each on S3 once, by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from binventory.config.cross_checks import is_weight_file
from binventory.data.prepare import index_bins, split_bins, split_list_of
from binventory.data.sources.file_list import FILE_LIST_NAME, REPORT_LIST, file_list_bytes, parse_file_list
from binventory.data.sources.s3 import is_s3, naming, split_folder
from binventory.data.sources.web import is_url
from binventory.errors import ConfigError
from binventory.files import open_limited
from binventory.sagemaker.bucket import S3Folder
from binventory.sagemaker.dataset import HASH_CHARS, make_dataset
from binventory.sagemaker.entry import CHANNEL_SCHEME, DATA_CHANNEL
from binventory.sagemaker.upload import MARKER, upload

READERS = {
    "abid": "binventory.data.sources.bucket.BucketSource",
    "imagefolder": "binventory.data.sources.imagefolder.ImageFolderSource",
    "table": "binventory.data.sources.table.TableSource",
}
SYNTHETIC = "binventory.data.sources.synthetic.SyntheticSource"
DATA_FOLDER, FILES_FOLDER = "data", "files"
# What decides neither which bins there are nor how they are split.
NOT_OF_BINS = (
    "confirm_download",
    "batch_size",
    "num_workers",
    "cache",
    "residence",
    "hflip",
    "shift",
    "scale",
    "rotation_degrees",
    "brightness",
    "contrast",
    "saturation",
    "image_size",
    "resize",
    "interpolation",
    "normalize",
)


@dataclass(frozen=True)
class JobInputs:
    """What one job reads.

    Attributes:
        config: the job's, in which `channel://NAME/…` stands for what lies on a channel.
        data: S3 prefix of the bins; None where the job fetches or draws them itself.
        files: channel -> S3 prefix of a file that the config names.
    """

    config: dict[str, Any]
    data: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)


class InputSender:
    """Puts inputs below a prefix; what other jobs had is not looked at again.

    Args:
        folder: the launch's prefix on S3.
        data: `hydra.launcher.data`.
        sends: False: say only where things would lie.
    """

    def __init__(self, folder: S3Folder, data: str | None, *, sends: bool = True) -> None:
        self._folder, self._data, self._sends = folder, data, sends
        self._bins: dict[str, tuple[str, dict[str, Any]]] = {}
        self._files: dict[Path | str, tuple[str, str]] = {}

    def send(self, config: dict[str, Any]) -> JobInputs:
        """Send what a job's plain config needs.

        Raises:
            InputError, ConfigError: a file cannot be read, or S3 refuses it.
        """
        config = {**config, "data": dict(config["data"])}
        data = self._place_bins(config)
        files: dict[str, str] = {}
        for dotted, channel in _FILES.items():
            node, name = _parent(config, dotted)
            value = node.get(name)
            if value is None:
                continue
            if dotted in _LISTS and is_url(value):
                files[channel], node[name] = self._send_list(dotted, channel, value)
            elif _is_local_file(dotted, value):
                files[channel], node[name] = self._send_file(dotted, channel, Path(value))
        return JobInputs(config, data, files)

    def _place_bins(self, config: dict[str, Any]) -> str | None:
        """Let `config.data` read from the channel; return what lies there, None without a channel."""
        data = config["data"]
        if self._data is None or data["reader"]["_target_"] == SYNTHETIC:
            if self._data is None and not is_s3(data["source"]) and data["reader"]["_target_"] != SYNTHETIC:
                raise ConfigError(
                    f"data.source={data['source']}: a job cannot read it; hydra.launcher.data=auto uploads it"
                )
            return None
        if self._data != "auto":
            uri, changes = self._data, {"source": _on_channel(DATA_CHANNEL)}
        elif is_s3(data["source"]):
            found = self._uploaded(data)
            if found is None:
                return None
            uri, changes = found
        else:
            uri, changes = self._upload_bins(config)
        data.update(changes)
        return uri

    def _uploaded(self, data: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
        """What `sagemaker upload` left, which is meant to be mounted; None: another place, e.g. the public bucket."""
        bucket, prefix = split_folder(data["source"])
        name = ""
        if data["reader"]["_target_"] == READERS["table"]:
            if data["source"].endswith("/"):
                return None  # names no table, as the job will find
            prefix, _, name = prefix.rpartition("/")
        uri = f"s3://{bucket}/{prefix}"
        there = S3Folder(self._folder.connection, bucket, prefix)
        if not prefix or there.read(MARKER, 1 << 20) is None:
            return None
        changes: dict[str, Any] = {"source": _on_channel(DATA_CHANNEL, name)}
        file_list = data["file_list"]
        if file_list is not None and file_list.startswith(f"{uri}/"):
            changes["file_list"] = _on_channel(DATA_CHANNEL, file_list.removeprefix(f"{uri}/"))
        return uri, changes

    def _upload_bins(self, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        which = {name: value for name, value in config["data"].items() if name not in NOT_OF_BINS}
        key = json.dumps(which, sort_keys=True)
        if key not in self._bins:
            node: Any = OmegaConf.create({name: config[name] for name in ("data", "s3", "paths")})
            assert isinstance(node, DictConfig)
            found = index_bins(node.data, node.s3, node.paths)
            prepared = split_bins(found, node.data, split_list_of(found, node.data, node.s3))
            dataset = make_dataset(found, prepared)
            uri = f"{self._folder.uri}/{DATA_FOLDER}/{dataset.content_hash}"
            if self._sends:
                sent = upload(
                    dataset,
                    f"{self._folder.uri}/{DATA_FOLDER}",
                    self._folder.connection.s3,
                    self._folder.kms_key,
                    node="hydra.launcher",
                    interrupt=self._folder.connection.stop,
                )
                print(f"bins: {uri}, sent {sent.sent:,} objects ({sent.sent_bytes / 1e6:,.1f} MB)", flush=True)
            file_list = _on_channel(DATA_CHANNEL, FILE_LIST_NAME) if dataset.has_file_list else None
            changes: dict[str, Any] = {
                "reader": {"_target_": READERS[dataset.layout]},
                "source": _on_channel(DATA_CHANNEL, dataset.source),
                "file_list": file_list,
            }
            self._bins[key] = uri, changes
        return self._bins[key]

    def _send_list(self, dotted: str, channel: str, url: str) -> tuple[str, str]:
        """Send what a web server has now: a job may reach no network, and all jobs of a launch read one list."""
        if url not in self._files:
            with naming(dotted):
                content = file_list_bytes(url)
                parse_file_list(content, url)
            folder = f"{FILES_FOLDER}/{hashlib.sha256(content).hexdigest()[:HASH_CHARS]}"
            if self._sends:
                self._folder.put(f"{folder}/{FILE_LIST_NAME}", content)
            self._files[url] = f"{self._folder.uri}/{folder}", FILE_LIST_NAME
        uri, name = self._files[url]
        return uri, _on_channel(channel, name)

    def _send_file(self, dotted: str, channel: str, path: Path) -> tuple[str, str]:
        """Send a file, or the bundle of a run folder; return its prefix and the value that stands for it."""
        if path not in self._files:
            files = _bundle_files(path) if path.is_dir() else [path]
            try:
                digest = hashlib.sha256()
                for file in files:
                    with open_limited(file, MAX_SENT_BYTES) as content:
                        digest.update(hashlib.file_digest(content, "sha256").digest())
                folder = f"{FILES_FOLDER}/{digest.hexdigest()[:HASH_CHARS]}"
                for file in files if self._sends else ():
                    self._folder.put_file(f"{folder}/{file.name}", file)
            except OSError as error:
                reason = error.strerror or error
                raise ConfigError(f"{dotted}={path}: cannot be read: {reason}; name another") from error
            self._files[path] = f"{self._folder.uri}/{folder}", "" if path.is_dir() else path.name
        uri, name = self._files[path]
        return uri, _on_channel(channel, name)


MAX_SENT_BYTES = 2**36  # of a file that a job needs
_LISTS = ("data.file_list", "data.split_list")
# Keys that may name files of this machine, and the channels that bring them.
_FILES = {
    "model.weights": "weights",
    "init_from": "init_from",
    "data.file_list": "file_list",
    "data.split_list": "split_list",
}


def _is_local_file(dotted: str, value: str) -> bool:
    if is_s3(value) or value.startswith(CHANNEL_SCHEME) or (dotted in _LISTS and value == REPORT_LIST):
        return False
    return dotted != "model.weights" or is_weight_file(value)


def _parent(config: dict[str, Any], dotted: str) -> tuple[dict[str, Any], str]:
    """The node that holds a key, copied so that the caller's is not changed, and the key's own name."""
    *above, name = dotted.split(".")
    node = config
    for part in above:
        node[part] = dict(node[part])
        node = node[part]
    return node, name


def _bundle_files(folder: Path) -> list[Path]:
    """The files of a run's model: of a run folder its bundle's."""
    bundle = folder / "bundle" if (folder / "bundle").is_dir() else folder
    files = sorted(path for path in bundle.iterdir() if path.is_file() and not path.name.startswith("."))
    if not any(path.suffix == ".safetensors" for path in files):
        raise ConfigError(f"init_from={folder}: has no bundle; only a finished run's weights can be sent")
    return files


def _on_channel(channel: str, name: str = "") -> str:
    return f"{CHANNEL_SCHEME}{channel}/{name}".rstrip("/")
