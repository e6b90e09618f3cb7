"""`demur push DIR`: publish a data set or a model on the Hugging Face hub."""

import os
from pathlib import Path
from typing import Any, Literal

from demur.cli import common
from demur.errors import UserError, WorkError
from demur.registry import missing

FILES = {  # What is uploaded from a folder: never reply caches, optimizer states, logs or dot files
    "dataset": "README.md LICENSE* data/* contamination.json",
    "model": "README.md LICENSE* *.safetensors *.safetensors.index.json config.json generation_config.json adapter_config.json "
    "tokenizer* special_tokens_map.json added_tokens.json vocab* merges.txt chat_template*",
}
Gate = Literal["none", "auto", "manual"]


@common.verb("json")
def push(
    folder: Path, to: str, flags: common.Flags, yes: bool = False, public: bool = False, gate: Gate | None = None
) -> None:
    """Publish a data set or a model on the Hugging Face hub. The token comes from HF_TOKEN or the hub's own login."""
    if to.count("/") != 1 or not all(to.split("/")):
        raise UserError(f"'{to}' is not a repository; write owner/name.")
    kind, files, harmful = _contents(folder)
    gate = gate or ("manual" if harmful else "none")
    if harmful and public and gate == "none":
        raise UserError("this holds harmful content, and public without a gate is refused. Use --gate manual or auto.")
    url = _send(folder, to, kind=kind, files=files, public=public, gate=gate) if yes else None
    sizes = {name: (folder / name).stat().st_size for name in files}
    if flags.json:
        plan = {"repo": to, "kind": kind, "files": sizes, "private": not public, "gate": gate}
        common.print_json(plan | {"sent": yes, "url": url})
        return
    common.stdout.print(f"{kind} {to} · {'public' if public else 'private'} · gate: {gate}")
    for name, size in sizes.items():
        common.stdout.print(f"  {size:>12,}  {name}")
    total = f"{sum(sizes.values()):,} bytes; nothing was sent. Add --yes to send it."
    common.stdout.print(f"sent: {url}" if yes else total)


def _contents(folder: Path) -> tuple[str, list[str], bool]:
    """The kind of a folder (`model` or `dataset`), its files to upload, and whether its card asks for a gate."""
    try:
        from huggingface_hub import RepoCard
        from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]
    except ModuleNotFoundError as error:
        raise missing(error, "demur push") from error
    model = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    if not model and not (folder / "data").is_dir():
        raise UserError(f"{folder} is neither a model (config.json) nor a data set (data/); see demur export --to hf.")
    if not (folder / "README.md").is_file():
        raise UserError(f"{folder} has no card (README.md). demur export --to hf writes one; write one for a model.")
    kind = "model" if model else "dataset"
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    visible = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    card = RepoCard.load(folder / "README.md", ignore_metadata_errors=True)
    files = list(filter_repo_objects(visible, allow_patterns=FILES[kind].split()))
    return kind, files, "extra_gated_prompt" in card.data


def _send(folder: Path, repo: str, *, kind: str, files: list[str], public: bool, gate: Gate) -> str:
    """Upload a folder; returns the commit's URL. First the gate, then the files, and only then is the repository made public.
    Raises WorkError: the hub refused a step; a repeated call goes on from there."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    where: Any = {"repo_id": repo, "repo_type": kind}
    try:
        api.create_repo(**where, private=True, exist_ok=True)
        if gate != "none":
            api.update_repo_settings(**where | {"gated": gate})
        message = "Upload with demur"
        commit = api.upload_folder(**where, folder_path=folder, allow_patterns=files, commit_message=message)
        if public:
            api.update_repo_settings(**where, private=False)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise WorkError(
            f"the hub refused ({status}): {error.server_message or error}. Fix that and push again."
        ) from None
    except (HTTPError, OSError, ValueError) as error:
        raise WorkError(f"{repo} could not be pushed: {str(error).rstrip('.')}. Push again to go on.") from None
    return str(commit.commit_url)
