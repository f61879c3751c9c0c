"""Real chat templates of many model families: `python -m tests.vocabularies` fetches them.

They are those of the `trl` wheel, for inference. They are never committed; they lie in
`.cache/chat_templates/`, all or none.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "1.16.0"
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "chat_templates" / f"trl-{VERSION}"
NAMES = (
    "cohere",
    "cohere2",
    "deepseek_r1_distill",
    "deepseekv3",
    "diffusion_gemma",
    "gemma",
    "gemma3",
    "gemma4",
    "gemma4_v2",
    "gemma4_v3",
    "gemma4_v4",
    "gemma4_v5",
    "glm4moe",
    "gptoss",
    "idefics3",
    "lfm2",
    "lfm2_2_5",
    "lfm2_2_5_v2",
    "lfm2_2_5_vl",
    "lfm2_v2",
    "llama3",
    "llama3_1",
    "llama3_2",
    "llava_next",
    "muse_glimmer",
    "nemotron_3_5_lightning",
    "nemotron_3_nano",
    "nemotron_3_super",
    "nemotron_3_ultra",
    "phi3",
    "phi3_5",
    "qwen2_5",
    "qwen2_5_vl",
    "qwen3",
    "qwen3_5_nothink",
    "qwen3_5_think",
    "qwen3_6",
    "qwen3_8",
    "qwen3_instruct_2507",
    "qwen3_vl",
    "smolvlm",
)
FETCH_TIMEOUT_S = 300.0
_IN_WHEEL = "trl/chat_templates/"


class NotFetched(Exception):
    """The templates are not there, or could not be fetched; one line."""


def template_text(name: str) -> str:
    """The text of one template.

    Raises:
        NotFetched: the templates are not there.
    """
    if not is_fetched():
        raise NotFetched(f"no templates in {CACHE}: run `python -m tests.vocabularies` first")
    return (CACHE / f"{name}.jinja").read_text(encoding="utf-8")


def is_fetched() -> bool:
    """Whether all of them are there."""
    return CACHE.is_dir()


def fetch() -> None:
    """Download the wheel and keep its templates; an interrupted download leaves nothing.

    Raises:
        NotFetched: pip failed, or the wheel holds other templates than `NAMES`.
    """
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE.parent, prefix=".fetch-") as scratch:
        texts = _inference_templates(_download(Path(scratch)))
        if sorted(texts) != sorted(NAMES):
            differing = ", ".join(sorted(set(texts).symmetric_difference(NAMES)))
            raise NotFetched(f"trl {VERSION}: other templates than expected: {differing}")
        whole = Path(scratch, "whole")
        whole.mkdir()
        for name, text in texts.items():
            (whole / f"{name}.jinja").write_bytes(text)
        whole.rename(CACHE)


def _download(directory: Path) -> Path:
    spec = f"trl=={VERSION}"
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
    command = [*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(directory), spec]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S)
    except subprocess.TimeoutExpired as exc:
        raise NotFetched(f"{spec}: pip took more than {FETCH_TIMEOUT_S:.0f} s") from exc
    except subprocess.CalledProcessError as exc:
        words = " ".join((exc.stderr or exc.stdout or "").split())[-300:]
        raise NotFetched(f"{spec}: pip download failed ({exc.returncode}): {words}") from exc
    [wheel] = directory.glob("*.whl")
    return wheel


def _inference_templates(wheel: Path) -> dict[str, bytes]:
    """The templates of the wheel by name, without those that mark tokens for training."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return {
                path.stem: archive.read(str(path))
                for path in map(Path, archive.namelist())
                if str(path).startswith(_IN_WHEEL)
                and path.suffix == ".jinja"
                and not path.stem.endswith("_training")
            }
    except (OSError, zipfile.BadZipFile) as exc:
        raise NotFetched(f"{wheel.name}: bad archive: {exc}") from exc
