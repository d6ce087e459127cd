# The small model of `make demo`, which puts it into this folder. float32, because there
# every engine gives the same tokens, so the swap can be proven on any laptop.
from opencompass.models import HuggingFacewithChatTemplate

models = [
    dict(
        type=HuggingFacewithChatTemplate,
        abbr='smollm2-135m-instruct-hf',
        path='.demo/SmolLM2-135M-Instruct',
        model_kwargs=dict(torch_dtype='float32'),
        max_seq_len=2048,
        max_out_len=128,
        batch_size=8,
        run_cfg=dict(num_gpus=1),
    )
]
