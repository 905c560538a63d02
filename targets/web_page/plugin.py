# /// script
# requires-python = ">=3.10,<3.15"
# dependencies = ["onnx>=1.18", "numpy>=1.26", "platformdirs>=4"]
#
# [tool.deploykit]
# name = "web"
# summary = "ONNX Runtime Web: a folder for any web server, with a page that runs and times the model"
# devices = ["wasm", "webgpu"]
# newest_opset = 23
# functions = ["probe", "compile", "load"]
# cross = true
#
# [tool.deploykit.settings]
# optimization = "all (default), extended, basic or none: what ONNX Runtime does to the graph as it loads it"
# ///
"""ONNX Runtime in a browser: a static folder with the runtime, the model and a page for both."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from deploykit._plugins.targets.web_page import exchange, model_files, npm_package
from deploykit._plugins.targets.web_page.browser import Browser, find
from deploykit._plugins.targets.web_page.web_server import WebServer
from deploykit._plugins.targets.web_page.web_session import WebPage, WebSession

from deploykit.errors import (
    PluginError,
    SourceError,
    StepOutOfMemory,
    UnavailableError,
    UnsupportedError,
)
from deploykit.onnx_file import signature_of
from deploykit.onnx_graph import check_dtypes, fixed_inputs
from deploykit.plugin_settings import Setting, in_force
from deploykit.progress import phase
from deploykit.protocol import (
    Availability,
    CompileRequest,
    CompileResult,
    LoadRequest,
    Signature,
    TensorSpec,
)

if TYPE_CHECKING:
    import onnx

SETTINGS = {
    "optimization": Setting(default="all", choices=("all", "extended", "basic", "none")),
}
MANIFEST = "manifest.json"
PAGE = Path(__file__).with_name("page")

# what each device needs of the package: the module, what it loads, and the machine code
RUNTIME = {
    "wasm": (
        "ort.wasm.min.mjs",
        "ort-wasm-simd-threaded.mjs",
        "ort-wasm-simd-threaded.wasm",
    ),
    "webgpu": (
        "ort.webgpu.min.mjs",
        "ort-wasm-simd-threaded.asyncify.mjs",
        "ort-wasm-simd-threaded.asyncify.wasm",
    ),
}
# In the folder they have these names: not every web server knows that .mjs is JavaScript.
ROLES = {"module": "ort.js", "loader": "ort-loader.js", "binary": "ort.wasm"}

HEADERS = (
    "for threads the web server must send `Cross-Origin-Opener-Policy: same-origin` and "
    "`Cross-Origin-Embedder-Policy: require-corp`, over https; else the page runs in one"
)

# what exporters call a graph that has no name of its own
NAMELESS = r"|(main|torch|tf2onnx|torch[-_]jit([-_]export)?)?[-_]?(graph|model)?"

NO_SUCH_TENSORS = "onnxruntime-web has no such tensors in JavaScript"
NO_ADAPTER = "offers no WebGPU adapter"

# What a browser must have, and what it says of its GPU; a driver may leave that without an answer.
ASK = """(async () => {
  const patience = new Promise((resolve) => setTimeout(resolve, 20000, null));
  const adapter = navigator.gpu ? await Promise.race([navigator.gpu.requestAdapter(), patience]) : null;
  const { vendor, architecture, description, isFallbackAdapter } = adapter ? adapter.info : {};
  return {
    isolated: crossOriginIsolated,
    threads: navigator.hardwareConcurrency,
    gpu: adapter && { vendor, architecture, description, software: isFallbackAdapter === true },
  };
})()"""


def probe() -> tuple[Availability, ...]:
    """Return what a browser of this machine offers: threads of WebAssembly, and WebGPU."""
    try:
        browser = Browser(find(), webgpu=True)
    except UnavailableError as error:
        return _unavailable(f"{error.message}; {error.hint}" if error.hint else error.message)
    try:
        server = WebServer(PAGE)
        try:
            found = browser.open_page(f"{server.address}index.html").evaluate(ASK)
        finally:
            server.close()
    except PluginError as error:
        return _unavailable(f"`{browser.program}`: {error.message}")
    finally:
        browser.close()
    product = browser.product.replace("/", " ")
    versions = {npm_package.PACKAGE: npm_package.VERSION}
    sandbox = "" if browser.sandboxed else ", without its sandbox"
    where = f"{product} (`{browser.program}`{sandbox})"
    threads = found["threads"] if found["isolated"] else 1
    gpu = found["gpu"]
    # a software adapter is not for `-t all`: a model that takes 0.1 s takes half a minute there
    hardware = gpu is not None and not gpu["software"]
    detail = f"{where} on {_adapter(gpu)}" if gpu else f"{where} offers no adapter"
    if gpu and not hardware:
        detail += "; `web:webgpu` by name uses it all the same"
    wasm = f"{where}, up to {threads} threads"
    return (
        Availability(device="wasm", available=True, detail=wasm, versions=versions),
        Availability(device="webgpu", available=hardware, detail=detail, versions=versions),
    )


def _unavailable(detail: str) -> tuple[Availability, ...]:
    return tuple(Availability(device=each, available=False, detail=detail) for each in RUNTIME)


def compile(request: CompileRequest) -> CompileResult:
    """Write the folder: page, runtime, model and manifest; then load it in a browser, if one is here.

    Raises UsageError for an unknown setting or shape; UnsupportedError for a precision, an element
    type, an operator that the runtime lacks, or a model of 2 GB; UnavailableError where the runtime
    is not in deploykit's home and npm's registry cannot be reached.
    """
    settings = in_force(request.settings, SETTINGS, plugin="web")
    inputs = fixed_inputs(request.signature.inputs, request.shapes)
    if request.precision != "fp32":
        raise UnsupportedError(
            f"target web has no precision `{request.precision}`", hint="it has fp32"
        )
    if request.hardware is not None and not request.hardware.architecture.startswith("wasm"):
        raise UnsupportedError(
            f"target web compiles for browsers, not for {request.hardware.name}",
            hint="leave --hardware out: its folder runs in the browser of any machine",
        )
    specs = (*request.signature.inputs, *request.signature.outputs)
    check_dtypes(specs, exchange.DTYPES, target="web", hint=NO_SUCH_TENSORS)
    phase("reading the model")
    model = model_files.read(request.model)
    payload = Path(request.payload)
    phase("writing the model")
    files = model_files.write(model, request.model, inputs, payload)
    signature = Signature(inputs=inputs, outputs=_outputs(model, request.signature.outputs))
    archive = npm_package.archive()
    phase("writing the page")
    runtime = dict(zip(RUNTIME[request.device], ROLES.values(), strict=True))
    npm_package.unpack(archive, runtime, payload)
    for path in sorted(PAGE.iterdir()):
        shutil.copyfile(path, payload / path.name)
    _write_manifest(payload, request, signature, settings, model.graph.name, files)
    versions = {npm_package.PACKAGE: npm_package.VERSION}
    notes = _try_in_browser(payload, request, versions)
    return CompileResult(
        signature=signature,
        settings=settings,
        versions=versions,
        notes=(*notes, HEADERS),
        portable=True,
    )


def load(request: LoadRequest) -> WebSession:
    """Return the model at work in the payload's own page, in a headless browser of this machine.

    Raises UnavailableError where there is no browser, or none with the device.
    """
    in_force(request.settings, SETTINGS, plugin="web")
    phase("loading")
    page = _opened(Path(request.payload), request.device, request.threads)
    if not page.browser.sandboxed:
        phase("loaded; the browser has no sandbox here")
    return WebSession(page, request.signature)


def _outputs(model: onnx.ModelProto, asked: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Return the outputs with the sizes that fixed inputs gave them."""
    shapes = {spec.name: spec.shape for spec in signature_of(model).outputs}
    return tuple(
        TensorSpec(name=spec.name, dtype=spec.dtype, shape=shapes.get(spec.name, spec.shape))
        for spec in asked
    )


def _write_manifest(
    payload: Path,
    request: CompileRequest,
    signature: Signature,
    settings: dict[str, str],
    name: str,
    files: tuple[str, ...],
) -> None:
    """Write what the page must know; the page's own words, so that they mean the same tomorrow."""

    def specs(of: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [
            {"name": spec.name, "type": spec.dtype, "shape": spec.shape and list(spec.shape)}
            for spec in of
        ]

    generic = re.fullmatch(NAMELESS, name) is not None
    level = settings["optimization"]
    manifest = {
        "name": "" if generic else name,
        "device": request.device,
        "precision": request.precision,
        "threads": request.threads,
        "optimization": "disabled" if level == "none" else level,
        "model": list(files),
        "bytes": sum((payload / file).stat().st_size for file in files),
        "runtime": {**ROLES, "version": npm_package.VERSION},
        "inputs": specs(signature.inputs),
        "outputs": specs(signature.outputs),
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    (payload / MANIFEST).write_text(f"{text}\n", encoding="utf-8")


def _try_in_browser(
    payload: Path, request: CompileRequest, versions: dict[str, str]
) -> tuple[str, ...]:
    """Load the model in a browser: only there it shows whether the runtime has its operators."""
    try:
        find()
    except UnavailableError as error:
        return (f"not tried: {error.message}",)
    phase("loading the page")
    page = _opened(payload, request.device, request.threads)
    try:
        versions["browser"] = page.browser.product.replace("/", " ")
        facts = page.facts
        where = f" on {_adapter(facts['gpu'])}" if facts["gpu"] else ""
        step = f"{facts['resolutionMs'] * 1000:.0f} µs"
        notes = [
            f"timed in {versions['browser']}{where} by the page's own clock, in steps of {step}"
        ]
        if not page.browser.sandboxed:
            notes.append("the browser was run without its sandbox, which it cannot have here")
        return tuple(notes)
    finally:
        page.close()


def _opened(payload: Path, device: str, threads: int | None) -> WebPage:
    """Open the payload's page; what the runtime says of an operator becomes an error of ours."""
    try:
        return WebPage(payload, device=device, threads=threads)
    except PluginError as error:
        if NO_ADAPTER not in error.message:
            _raise_translated(error, device)
    # seen on a busy machine: the browser gives up its GPU process, and a new browser has one again
    try:
        return WebPage(payload, device=device, threads=threads)
    except PluginError as error:
        _raise_translated(error, device)


def _raise_translated(error: PluginError, device: str) -> NoReturn:
    text = error.message.splitlines()[0]
    if NO_ADAPTER in text:
        raise UnavailableError(
            f"target web: {text}", hint="`deploykit doctor` says what the browser has"
        ) from error
    if "Can't create a session" not in text:
        raise error
    said = text.partition("ERROR_MESSAGE:")[2].strip() or text
    missing = re.search(
        r"implementation for (\w+)|No Op registered for (\w+)|(\S+) is not a registered function",
        said,
    )
    if missing is not None:
        operator = next(name for name in missing.groups() if name).split(":")[-1]
        raise UnsupportedError(
            f"target web has no kernel for operator {operator}: {said}", operators=(operator,)
        ) from error
    if re.search(r"bad_alloc|failed to allocate|out of memory", said, re.IGNORECASE):
        raise StepOutOfMemory(f"the page has no memory for the model: {said}") from error
    code = re.search(r"ERROR_CODE: (\d+)", text)
    # OrtErrorCode: 7 ORT_INVALID_PROTOBUF, 10 ORT_INVALID_GRAPH, 1 ORT_FAIL, 2 ORT_INVALID_ARGUMENT
    if code is not None and code[1] in ("1", "2", "7", "10"):
        raise SourceError(f"ONNX Runtime Web cannot take the model on {device}: {said}") from error
    raise error


def _adapter(gpu: dict[str, Any]) -> str:
    words = (gpu["vendor"], gpu["architecture"], gpu["description"])
    name = " ".join(dict.fromkeys(word for word in words if word)) or "an adapter without a name"
    software = ", a processor that plays GPU: its times say nothing of one"
    return f"{name}{software if gpu['software'] else ''}"
