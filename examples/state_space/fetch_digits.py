"""Writes scikit-learn's handwritten digits as CSV: 64 pixels (0 to 16) and the digit, one image a line.

    python3 examples/state_space/fetch_digits.py target/digits.csv

Only the package's own file is taken, with pip; nothing is installed. The data are the test part of the optical digits
set of the UCI repository (Alpaydin and Kaynak 1998), under CC BY 4.0.
"""

import glob
import gzip
import os
import subprocess
import sys
import tempfile
import zipfile


def main() -> None:
    target = sys.argv[1] if len(sys.argv) > 1 else "target/digits.csv"
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, "scikit-learn"], check=True)
        (wheel,) = glob.glob(os.path.join(folder, "*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            text = gzip.decompress(archive.read("sklearn/datasets/data/digits.csv.gz"))
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    with open(target, "wb") as file:
        file.write(text)
    print(f"{target}: {len(text.splitlines())} images")


main()
