"""Hold `lora_kit --match_diffusers` against diffusers' LoRA script, case by case: same losses, same rates, same file.

    python benchmarks/compare.py .../examples/text_to_image/train_text_to_image_lora.py --keep build/reference

Both scripts run unchanged, each in processes of its own (benchmarks/run_one.py), with the flags of benchmarks/cases.py.
The exit status is 1 where a case differs. --record writes figures of the reference's runs for tests/test_reference.py.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cases import CASES, RECORDED, cut_short, find_cases, write_pictures

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "diffusers", "accelerate", "peft", "transformers", "bitsandbytes", "datasets", "pillow", "numpy")
LORA = "pytorch_lora_weights.safetensors"
WEIGHTS, FIGURES = 1e-5, 1e-6  # the largest differences that are called "same"


class RunFailed(Exception):
    """A script ended with an error; the text is the end of what it said."""


def versions():
    """The installed version of each package that has a part in the figures."""

    def installed(name):
        try:
            return version(name)
        except PackageNotFoundError:
            return "none"

    return {name: installed(name) for name in PACKAGES}


def start(script, argv, record, processes, log, environment):
    """Run one script to its end under run_one.py; its output goes to `log`. Raises `RunFailed`."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(REPOSITORY / "benchmarks" / "run_one.py"), str(record), script, *argv]
    with open(log, "w") as output:
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        lines = Path(log).read_text(errors="replace").replace("\r", "\n").splitlines()
        raise RunFailed("\n".join([f"{script} ended with {done.returncode}:", *lines[-25:]]))


class Comparison:
    """All that the runs of one call share: where things are, and the lock of each reference result."""

    def __init__(self, options, work):
        self.options, self.work = options, Path(work)
        self.keep = Path(options.keep or self.work / "reference").resolve()
        self.keep.mkdir(parents=True, exist_ok=True)
        self.script = str(Path(options.reference).resolve())
        self.model = str(Path(options.model).resolve())
        self.threads = options.threads
        self.locks = defaultdict(threading.Lock)
        weights = sorted(Path(self.model).rglob("*.safetensors"))
        self.made_by = {
            **versions(),
            "python": platform.python_version(),
            "threads": self.threads,
            "script": _digest(Path(self.script)),
            "pictures": _digest(Path(__file__).with_name("cases.py"), after="SIZES ="),
            "model": [_digest(path) for path in weights],
        }
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.work / "datasets"),
            "LORA_KIT_CACHE": str(self.work / "encoded"),
            "ACCELERATE_USE_CPU": "true",
        }
        for kind in ("square", "large", "captions"):
            write_pictures(self.work / kind, kind)

    def run(self, script, case, processes, folder, extra=()):
        """The losses and rates of a case, in order; the LoRA is then in `folder`."""
        folder.mkdir(parents=True)
        places = ["--pretrained_model_name_or_path", self.model, "--train_data_dir", str(self.work / case.data)]
        places += ["--output_dir", str(folder), *extra]
        updates = []
        for number, argv in enumerate(case.commands(processes)):
            record, log = folder / f"updates-{number}.jsonl", folder / f"log-{number}.txt"
            start(script, [*argv, *places], record, processes, log, self.environment)
            updates += [json.loads(line) for line in record.read_text().splitlines()]
        return {"losses": [line["loss"] for line in updates], "rates": [line["lr"] for line in updates]}

    def reference(self, case, processes):
        """(figures, path of the LoRA) of the reference, from --keep where it ran before with the same of everything."""
        made_by = {**self.made_by, "data": case.data, "processes": processes, "commands": case.commands(processes)}
        name = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
        folder = self.keep / name
        with self.locks[name]:
            if not (folder / "case.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                found = self.run(self.script, case, processes, folder)
                text = json.dumps({"case": case.name, **made_by, **found}, indent=1)
                (folder / "part").write_text(text)
                os.replace(folder / "part", folder / "case.json")
        return json.loads((folder / "case.json").read_text()), folder / LORA

    def compare(self, case, processes):
        """The row of the table: differences in weights, losses and rates, and the verdict."""
        row = {"case": case.name, "processes": processes, "updates": "", "verdict": "FAILED", "note": ""}
        folder = self.work / f"ours-{case.name}-{processes}"
        try:
            theirs, their_file = self.reference(case, processes)
            if self.options.reference_only:
                return {**row, "updates": len(theirs["losses"]), "verdict": "kept"}
            ours = self.run("lora_kit.training", case, processes, folder, ["--match_diffusers", *case.ours])
            row["updates"] = len(ours["losses"])
            row["weights"], row["note"] = difference_of_files(folder / LORA, their_file)
            row["losses"] = largest_difference(ours["losses"], theirs["losses"])
            row["rates"] = largest_difference(ours["rates"], theirs["rates"])
            same = row["weights"] <= WEIGHTS and row["losses"] <= FIGURES and row["rates"] <= FIGURES
            row["verdict"] = "same" if same and not row["note"] else "DIFFERS"
            if row["losses"] > FIGURES and not row["note"]:
                pairs = zip(ours["losses"], theirs["losses"], strict=False)
                first = [number for number, (our, their) in enumerate(pairs) if abs(our - their) > FIGURES]
                row["note"] = f"the first loss that differs is update {first[0]}'s" if first else "other lengths"
        except (RunFailed, FileNotFoundError) as error:
            row["note"] = str(error)
        finally:
            if row["verdict"] in ("same", "kept"):
                shutil.rmtree(folder, ignore_errors=True)
        return row


def _digest(path, after=None):
    text = path.read_bytes()
    return hashlib.sha256(text[text.index(after.encode()) :] if after else text).hexdigest()[:16]


def largest_difference(ours, theirs):
    """The largest absolute difference of two lists; infinite where their lengths differ or a number is no number."""
    if len(ours) != len(theirs):
        return math.inf
    differences = [abs(our - their) for our, their in zip(ours, theirs, strict=True)]
    return math.inf if any(map(math.isnan, differences)) else max(differences, default=math.inf)


def difference_of_files(ours, theirs):
    """(the largest absolute difference of the tensors, what else differs) of two safetensors files."""
    from safetensors.torch import load_file

    ours, theirs = load_file(ours), load_file(theirs)
    if ours.keys() != theirs.keys():
        return math.inf, f"keys: {len(ours.keys() - theirs.keys())} new, {len(theirs.keys() - ours.keys())} missing"
    for name, tensor in theirs.items():
        if (ours[name].dtype, ours[name].shape) != (tensor.dtype, tensor.shape):
            return math.inf, f"{name} is {ours[name].dtype} {tuple(ours[name].shape)}"
    return max((ours[name].double() - tensor.double()).abs().max().item() for name, tensor in theirs.items()), ""


def figures_of_file(path):
    """What a test needs to know a LoRA again: its keys' digest, dtype, and sums of its tensors in float64.

    fits_bf16: whether bfloat16 holds every value exactly, so that these weights were trained in it.
    """
    from safetensors.torch import load_file

    tensors = load_file(path)
    names = sorted(tensors)
    kinds = {kind: [tensors[name].double() for name in names if f".lora.{kind}." in name] for kind in ("down", "up")}

    def sums(some):
        return [math.fsum(one.sum().item() for one in some), math.fsum(one.abs().sum().item() for one in some)]

    return {
        "keys": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "dtype": ", ".join(sorted({str(tensor.dtype) for tensor in tensors.values()})),
        "fits_bf16": all(tensor.equal(tensor.bfloat16().to(tensor.dtype)) for tensor in tensors.values()),
        **{kind: sums(some) for kind, some in kinds.items()},
        "tensors": {name: sums([tensors[name].double()]) for name in names[5 :: len(names) // 4]},
    }


def colour(text, number):
    return f"\033[{number}m{text}\033[0m" if sys.stdout.isatty() else text


def shown(row):
    """A row of the table as a line; what failed follows on lines of its own."""

    def number(name):
        value = row.get(name)
        return "-" if value is None else "exact" if value == 0 else f"{value:.1e}"

    good = row["verdict"] in ("same", "kept")
    line = f"{row['case']:24}{row['processes']:>3}{row['updates']:>9}"
    line += "".join(f"{number(name):>10}" for name in ("weights", "losses", "rates"))
    line += f"  {colour(row['verdict'], 32 if good else 31)}"
    notes = row["note"].splitlines()
    return "\n".join([line + (f": {notes[0]}" if notes else ""), *(f"    {note}" for note in notes[1:])])


def run_all(pairs, work, jobs):
    """work(case, processes) for all pairs in turn, `jobs` processes at a time; yields (pair, result) as they end."""
    for processes in sorted({processes for _, processes in pairs}):
        mine = [pair for pair in pairs if pair[1] == processes]
        with ThreadPoolExecutor(max(1, jobs // processes)) as pool:
            yield from zip(mine, pool.map(lambda pair: work(*pair), mine), strict=True)


def record(comparison, commit, path, jobs):
    """Write the figures of the reference's short runs."""
    pairs = [(cut_short(case), processes) for processes in RECORDED for case in find_cases(RECORDED[processes])]
    cases = []
    for (case, processes), (found, lora) in run_all(pairs, comparison.reference, jobs):
        print(f"{case.name:24}{processes:>3}  recorded")
        one = {"name": case.name, "processes": processes, "data": case.data, "commands": case.commands(processes)}
        cases.append({**one, "losses": found["losses"], "rates": found["rates"], "file": figures_of_file(lora)})
    heading = {"commit": commit, "versions": versions(), "threads": comparison.threads}
    lines = ",\n".join(json.dumps(one) for one in cases)
    Path(path).write_text(f'{{"made_with": {json.dumps(heading)},\n"cases": [\n{lines}\n]}}\n')
    print(f"{len(cases)} cases in {path}, {Path(path).stat().st_size / 1000:.0f} kB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", help="diffusers' train_text_to_image_lora.py")
    parser.add_argument("--cases", nargs="+", default=[case.name for case in CASES], metavar="NAME")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2], metavar="P")
    parser.add_argument("--model", default=REPOSITORY / "lora_kit" / "embedded_model", help="the base model's folder")
    parser.add_argument("--keep", help="keep the reference's results here for the next call")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time; each has --threads threads")
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS of each process")
    parser.add_argument("--reference_only", action="store_true", help="only fill --keep")
    parser.add_argument("--record", metavar="FILE", help="write the reference's figures for the tests, and end")
    parser.add_argument("--commit", default="unknown", help="the commit of the reference script, for --record")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="compare-") as work:
        comparison = Comparison(options, work)
        if options.record:
            record(comparison, options.commit, options.record, options.jobs)
            return
        print(", ".join(f"{name} {number}" for name, number in versions().items()))
        print(f"{platform.machine()} CPU, {options.threads} thread(s) a process; largest absolute difference of each")
        titles = "".join(f"{title:>10}" for title in ("weights", "losses", "rates"))
        print(f"{'case':24}{'P':>3}{'updates':>9}{titles}  verdict")
        rows = []
        pairs = [(case, processes) for processes in options.processes for case in find_cases(options.cases)]
        for _, row in run_all(pairs, comparison.compare, options.jobs):
            rows.append(row)
            print(shown(row), flush=True)
    bad = sum(row["verdict"] not in ("same", "kept") for row in rows)
    print(f"{len(rows) - bad} of {len(rows)} as they should be, in {time.monotonic() - began:.0f} s")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
