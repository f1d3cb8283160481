"""Models in the quantizations of llama.cpp, made of a .gguf file once."""

from pathlib import Path

import llama_cpp


def quantized(model: str, quantization: str, cache: str) -> str:
    """The file of a model in a quantization such as `q4_0`; made under `cache` if it is not there."""
    file = Path(cache) / f"llamacpp-{quantization}.gguf"
    if not file.exists():
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quantization.upper()}")
        parameters.allow_requantize = True
        unfinished = file.with_suffix(".part")
        if llama_cpp.llama_model_quantize(model.encode(), str(unfinished).encode(), parameters):
            raise RuntimeError(f"llama.cpp cannot write {model} as {quantization}")
        unfinished.rename(file)
    return str(file)
