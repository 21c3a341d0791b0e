"""`upload`: the bins of a source on S3, once for the same content, for jobs that run elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from binventory.config.schema import UploadConfig
from binventory.data.prepare import index_bins, split_bins, split_list_of
from binventory.data.sources.file_list import FILE_LIST_NAME
from binventory.files import write_json
from binventory.sagemaker.dataset import make_dataset
from binventory.sagemaker.upload import check_target, upload


def run(config: UploadConfig, run_dir: Path) -> str:
    """Prepare `config.data` as `prepare` does, upload it below `config.s3_uri`, and say how it is named from now on.

    Returns:
        What `data.source=` takes.

    Raises:
        ConfigError, InputError: as `prepare_bins`, or the bucket cannot be written.
    """
    check_target(config.s3_uri, config.target)
    data = config.data
    found = index_bins(data, config.s3, config.paths)
    bins = split_bins(found, data, split_list_of(found, data, config.s3))
    print(*bins.summary.lines(), sep="\n")
    dataset = make_dataset(found, bins)
    if dataset.skipped:
        print(f"warning: {len(dataset.skipped):,} bins have no file that can be sent, e.g. {dataset.skipped[0]}")
    result = upload(dataset, config.s3_uri, config.target, config.kms_key)
    source = "/".join(part for part in (result.uri, dataset.source) if part)
    words = [f"data={dataset.layout}", f"data.source={source}"]
    if dataset.has_file_list:
        words.append(f"data.file_list={result.uri}/{FILE_LIST_NAME}")
    print(f"fingerprint: {bins.fingerprint}")
    print(f"sent {result.sent:,} objects ({result.sent_bytes / 1e6:,.1f} MB), already there {result.present:,}")
    print(*words)
    facts = {"source": source, "overrides": words, "fingerprint": bins.fingerprint, "sent": result.sent}
    write_json(run_dir / "summary.json", facts | {"present": result.present, "bins": asdict(bins.summary)})
    return source
