"""From a folder to the model that transformers builds from it, ready to be called and exported."""

from __future__ import annotations

import inspect
import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit._plugins.converters.hugging_face.inputs import example_inputs, forward_names
from deploykit._plugins.converters.pytorch.modules import module_program
from deploykit._plugins.converters.pytorch.program import Program, first_line

from deploykit.errors import SourceError, UnsupportedError, UsageError
from deploykit.plugin_settings import Setting, check_names
from deploykit.progress import phase
from deploykit.protocol import Source

SETTINGS = ("class", "part", "outputs")
CACHES = ("past_key_values", "mems", "cache_params", "state", "encoder_last_hidden_state")
"""Outputs for the next step of a generation loop, and an encoder's inside a decoder's: left out."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model as a program of named tensors, and what the user should know about its loading."""

    program: Program
    notes: tuple[str, ...]


def load(source: Source) -> Loaded:
    """Load the folder without any network.

    Raises SourceError where weights are missing or damaged, UnsupportedError where loading needs code
    of its own and is not trusted, UsageError for a wrong setting.
    """
    _check_settings(source)
    # read by transformers when it is imported
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    phase("importing transformers")
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    phase("loading the model")
    model, notes = _model(source)
    model.eval()
    config = model.config
    for part in _configurations(config):
        part.use_cache = False
    if source.options.get("part", "") == "encoder":
        if not getattr(config, "is_encoder_decoder", False):
            raise UsageError(f"`{type(model).__name__}` has no encoder of its own to convert alone")
        model = model.get_encoder()
    examples, marks = example_inputs(model, config, source)
    module = _Forward(model, _wanted_outputs(source)).module(tuple(examples))
    program = module_program(module, examples, marks, source.inputs)
    return Loaded(program=program, notes=notes)


def _check_settings(source: Source) -> None:
    check_names(source.options, SETTINGS, plugin="the Hugging Face converter")
    if "part" in source.options:
        Setting(default="", choices=("encoder",)).check("part", source.options["part"])


def _wanted_outputs(source: Source) -> tuple[str, ...]:
    return tuple(filter(None, source.options.get("outputs", "").split(",")))


def _configurations(config: Any) -> list[Any]:
    """Return the configuration and those of its parts (text, vision, encoder, decoder)."""
    parts = [value for value in vars(config).values() if hasattr(value, "to_dict")]
    return [config, *(inner for part in parts for inner in _configurations(part))]


def _model(source: Source) -> tuple[Any, tuple[str, ...]]:
    import torch
    import transformers

    folder = Path(source.location)
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(described, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"cannot read `{folder / 'config.json'}`: {error}") from error
    kind = _class(source, described)
    own_code = "auto_map" in described and source.trust
    with_code: dict[str, Any] = {"trust_remote_code": True} if own_code else {}
    try:
        model, report = kind.from_pretrained(
            os.fspath(folder),
            local_files_only=True,
            dtype=torch.float32,
            attn_implementation=_attention(kind),
            output_loading_info=True,
            **with_code,
        )
    except pickle.UnpicklingError as error:
        raise UnsupportedError(
            f"the weights in `{folder}` are a pickle that would run code: {first_line(error)}",
            hint="ask its author for `model.safetensors`",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise UnsupportedError(
                f"`{folder}` brings code of its own: {first_line(error)}",
                hint="give --trust if you know where it comes from",
            ) from error
        raise SourceError(
            f"transformers {transformers.__version__} cannot load `{folder}`: "
            f"{type(error).__name__}: {first_line(error)}",
            hint="config.json and weights must belong to each other, and to a model it knows",
        ) from error
    except Exception as error:
        # safetensors' error has no base but Exception
        if type(error).__module__.startswith("safetensors"):
            raise SourceError(f"damaged weights in `{folder}`: {first_line(error)}") from error
        raise
    return model, _complete(folder, model, report)


def _attention(kind: Any) -> str | None:
    """Return the plain form of attention where the class knows several: operators, no kernel."""
    import transformers

    known = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    return "eager" if known else None


def _class(source: Source, described: dict[str, Any]) -> Any:
    import transformers

    named = described.get("architectures")
    asked = source.options.get("class") or (named[0] if isinstance(named, list) and named else "")
    if not isinstance(asked, str) or not asked:
        return transformers.AutoModel
    found = getattr(transformers, asked, None) if asked.isidentifier() else None
    if isinstance(found, type) and hasattr(found, "from_pretrained"):
        return found
    mapped = described.get("auto_map")
    if isinstance(mapped, dict) and mapped:
        if not source.trust:
            raise UnsupportedError(
                f"the class `{asked}` is code in `{source.location}`, not part of transformers "
                f"{transformers.__version__}",
                hint="give --trust if you know where it comes from",
            )
        for auto, reference in mapped.items():
            if str(reference).rpartition(".")[2] == asked and hasattr(transformers, auto):
                return getattr(transformers, auto)
    raise UnsupportedError(
        f"transformers {transformers.__version__} has no class `{asked}`",
        hint="name another one that loads these weights: `--set class=BertModel`",
    )


def _complete(folder: Path, model: Any, report: Any) -> tuple[str, ...]:
    """Return notes on the loading. Raises SourceError where a weight would start at random."""

    def names(key: str) -> list[str]:
        found = report.get(key) if isinstance(report, dict) else getattr(report, key, None)
        return sorted(str(one) for one in found or ())

    missing, mismatched = names("missing_keys"), names("mismatched_keys")
    if missing or mismatched:
        wrong = missing or mismatched
        what = "lack" if missing else "have another shape of"
        raise SourceError(
            f"the weights in `{folder}` {what} {', '.join(wrong[:5])}"
            f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''} of `{type(model).__name__}`, "
            "which would start at random",
            hint="name the class that was saved: `--set class=BertModel`, or use the trained folder",
        )
    notes = []
    unused = names("unexpected_keys")
    if unused:
        notes.append(
            f"left out {len(unused)} weights that `{type(model).__name__}` has no use for: "
            + ", ".join(unused[:3])
        )
    return tuple(notes)


class _Forward:
    """Builds the module to export: keyword arguments by name, and a dict of tensors as output."""

    def __init__(self, model: Any, wanted: tuple[str, ...]) -> None:
        self.model = model
        self.wanted = wanted

    def module(self, names: tuple[str, ...]) -> Any:
        import torch

        wanted, model = self.wanted, self.model
        known = forward_names(model)
        fixed = {"return_dict": True} if "return_dict" in known else {}
        if "use_cache" in known:
            fixed["use_cache"] = False

        class Forward(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, **inputs: Any) -> dict[str, Any]:
                return _tensors(self.model(**inputs, **fixed), wanted)

        module = Forward()
        parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        # exporters bind arguments by the signature
        Forward.forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *parameters]
        )
        return module


def _tensors(output: Any, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Return the tensors of a model output under its own names, tuples of them numbered."""
    import torch

    found: dict[str, Any] = {}
    for name, value in output.items():
        if name in CACHES and name not in wanted:
            continue
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, (tuple, list)):
            for place, item in enumerate(value):
                if isinstance(item, torch.Tensor):
                    found[f"{name}_{place}"] = item
    if not wanted:
        return found
    absent = [name for name in wanted if name not in found]
    if absent:
        raise UsageError(
            f"the model gives no output `{absent[0]}`", hint=f"outputs: {', '.join(found)}"
        )
    return {name: found[name] for name in wanted}
