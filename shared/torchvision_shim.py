"""Let a CUDA build of torchvision be imported beside a CPU build of torch.

The default package index serves torchvision for Linux as a CUDA build. Beside CPU torch its compiled operators cannot
load, and `import torchvision` dies because the schemas they would have declared (`nms`, `qnms`) are missing. Nothing
in this project calls these operators; only the Python-side image transforms are used, by transformers and vLLM.

This file has two lives. `python -m shared.torchvision_shim install` copies it into the site-packages of the running
environment, under the name `MODULE`, beside a `.pth` file that imports it in every process. Imported there it puts
one finder on `sys.meta_path`, which acts when torchvision is imported: if the two builds do not match it declares the
two schemas before torchvision's own code runs. It imports torch only then, and an error in here never stops Python.

Standard library only, nothing from this project: it must work as a lone file.
"""

import sys

MODULE = "_l2l_torchvision_shim"
"""Name under which the copy in site-packages is imported."""
PTH = "l2l_torchvision_shim.pth"
"""The file that makes Python import the copy at start-up."""
PTH_TEXT = 'import sys; exec("try:\\n    import _l2l_torchvision_shim\\nexcept Exception:\\n    pass")\n'
"""One line, as site.py wants it; a missing or broken copy is passed over in silence."""
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
"""What torchvision's own Python code expects to find declared."""

libraries: list = []
"""Declarations made; torch takes them back when a Library is collected."""


def version_text(package: str) -> str | None:
    """The text of an installed package's `version.py`, read without importing the package; None if there is none."""
    import os
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec(package)
    path = os.path.join(os.path.dirname(spec.origin), "version.py") if spec and spec.origin else ""
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as file:
        return file.read()


def is_cuda_build(text: str) -> bool:
    """Whether a `version.py` of torch or torchvision is that of a CUDA build.

    Args:
        text: Its content: `__version__ = '0.28.0+cu130'`, and in both packages `cuda: Optional[str] = '13.0'` or None.
    """
    import re

    tagged = re.search(r"^__version__[^=\n]*=\s*['\"][^'\"]*\+cu\d", text, re.MULTILINE)
    named = re.search(r"^cuda\b[^=\n]*=\s*['\"]", text, re.MULTILINE)
    return bool(tagged or named)


def is_needed() -> bool:
    """Whether a CUDA build of torchvision lies beside a torch that is not one."""
    vision, torch = version_text("torchvision"), version_text("torch")
    return vision is not None and torch is not None and is_cuda_build(vision) and not is_cuda_build(torch)


def declare() -> None:
    """Declare the schemas; one that is already there is left alone."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    libraries.append(library)
    for schema in SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)


class Finder:
    """Meta-path finder for the one name `torchvision`: the usual spec, whose execution first declares the schemas."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        """Called by Python for every import that is not cached, and by those who only ask; `name` is dotted."""
        if name != "torchvision":
            return None
        try:
            from importlib.machinery import PathFinder

            spec = PathFinder.find_spec(name)
            if spec is None or spec.loader is None or not is_needed():
                return None
            execute = spec.loader.exec_module

            def declare_and_execute(module: object) -> None:
                try:
                    declare()
                except Exception:  # torchvision's own import is the one to report what is wrong
                    pass
                execute(module)  # type: ignore[arg-type]

            spec.loader.exec_module = declare_and_execute  # type: ignore[method-assign,assignment]
            return spec
        except Exception:
            return None


def install() -> str:
    """Copy this file and its `.pth` into site-packages, or take an old copy away where it is not needed.

    vLLM also asks for torchaudio and torchcodec. Their CUDA builds cannot load beside CPU torch either, transformers
    and vLLM import them where they are present, and no image goes through them: they are uninstalled.

    Returns:
        One line that says what was done.
    """
    import shutil
    import subprocess
    import sysconfig
    from pathlib import Path

    site = Path(sysconfig.get_paths()["purelib"])
    if not is_needed():
        for name in (PTH, f"{MODULE}.py"):
            (site / name).unlink(missing_ok=True)
        return "torchvision: matches torch, no shim needed"
    shutil.copyfile(__file__, site / f"{MODULE}.py")
    (site / PTH).write_text(PTH_TEXT, encoding="utf-8")
    unusable = [name for name in ("torchaudio", "torchcodec") if "+cu" in (version_text(name) or "")]
    if unusable:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *unusable], check=True)
    return "torchvision: CUDA build beside CPU torch, shim installed" + "".join(
        f", {name} removed" for name in unusable
    )


if __name__ == MODULE:
    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
elif __name__ == "__main__":
    if sys.argv[1:] != ["install"]:
        sys.exit("usage: python -m shared.torchvision_shim install")
    print(install())
