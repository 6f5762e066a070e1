"""Batched generation: prompts of different lengths get the texts they would get alone."""

import gc
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from tests.inference.test_decoding import EVERY_KIND
from tests.inference.test_generator import BYTES, EOT, LETTERS
from tests.support.kernels import decode_kernels_here
from tests.support.models import Scripted, options, tiny_model
from tinyllm.errors import UserError
from tinyllm.inference.decoding import Decoder, decode
from tinyllm.inference.generator import generate_batch, stream_text
from tinyllm.inference.sampling import Sampling, TokenChooser
from tinyllm.models.transformer import Transformer
from tinyllm.nn.inference_linear import PackedLinear, has_packed, quantize_rows

CONTEXT, WINDOW = 12, 5
PROMPTS = [[3, 1, 4], [1], [(5 * i) % 17 for i in range(CONTEXT + 3)], [2, 7, 1, 8, 2, 8, 1, 8]]
SETTINGS = {"max_new_tokens": 30, "sampling": Sampling(temperature=8.0)}
LINES = ["abc", "", "a", "abc def ghi jkl mno", "ab"]


def model_of(attn: str, pos: str, window: int) -> Transformer:
    chosen = (f"attn={attn}", f"pos={pos}", f"model.block.attn.window={window}")
    return tiny_model(*chosen, max_seq_len=CONTEXT, vocab_size=LETTERS.vocab_size).eval()


@pytest.mark.parametrize("window", [0, WINDOW])
@pytest.mark.parametrize(("attn", "pos"), EVERY_KIND)
def test_batched_rows_have_the_logits_of_single_rows_past_window_and_context(attn: str, pos: str, window: int) -> None:
    model = model_of(attn, pos, window)
    numbers = torch.Generator().manual_seed(1)
    new = torch.randint(LETTERS.vocab_size, (CONTEXT + 5, len(PROMPTS)), generator=numbers)  # forced: varied tokens
    settings = {"n_samples": 1, "max_new_tokens": len(new) + 1}

    with torch.no_grad():  # the logits of this model reach far beyond 1
        scale = model.logits(model(new.T[:, :CONTEXT])).abs().max()

    def logits(prompts: list[list[int]], forced: torch.Tensor, kv_cache: bool) -> torch.Tensor:
        decoder = Decoder(model, prompts, kv_cache=kv_cache, **settings)  # type: ignore[arg-type]
        steps = [decoder.logits()]
        for ids_B in forced:
            decoder.append(ids_B)
            steps.append(decoder.logits())
        return torch.stack(steps) / scale

    together = logits(PROMPTS, new, True)
    torch.testing.assert_close(together, logits(PROMPTS, new, False), atol=1e-5, rtol=0)
    alone = torch.cat([logits([prompt], new[:, row : row + 1], True) for row, prompt in enumerate(PROMPTS)], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kv_cache", [True, False])
@pytest.mark.parametrize("moe", options("moe"))
def test_batched_texts_equal_those_of_each_prompt_alone(moe: str, kv_cache: bool) -> None:
    model = tiny_model(f"moe={moe}", "attn=mla", max_seq_len=CONTEXT, vocab_size=LETTERS.vocab_size)
    together = generate_batch(model, LETTERS, LINES, n_samples=3, kv_cache=kv_cache, stop=["d", "h"], **SETTINGS)
    assert together == [
        generate_batch(model, LETTERS, [line], n_samples=3, stop=["d", "h"], **SETTINGS)[0] for line in LINES
    ]
    assert together[2][:1] == generate_batch(model, LETTERS, ["a"], stop=["d", "h"], **SETTINGS)[0]
    assert len({text for texts in together for text in texts}) > 8
    assert len({len(text) for texts in together for text in texts}) > 2  # they end at different steps


def test_repetition_penalty_sees_only_the_prompt_of_its_row() -> None:
    model = tiny_model(max_seq_len=CONTEXT, vocab_size=LETTERS.vocab_size)
    settings = {"max_new_tokens": 9, "sampling": Sampling(temperature=0, repetition_penalty=3.0)}
    together = generate_batch(model, LETTERS, LINES, **settings)
    assert together == [generate_batch(model, LETTERS, [line], **settings)[0] for line in LINES]


def test_finished_rows_are_no_longer_computed() -> None:
    scripts = [[*text, EOT] for text in (b"abcdef", b"ab", b"a|c", b"abcd")]
    model = Scripted(*scripts)
    read = []
    pieces = list(
        stream_text(
            model, BYTES, ["x", "yy"], n_samples=2, max_new_tokens=5, stop="|", sampling=Sampling(temperature=0)
        )
    )
    for prompt, sample in product(range(2), range(2)):
        read.append("".join(piece.text for piece in pieces if (piece.prompt, piece.sample) == (prompt, sample)))
    assert read == ["abcde", "ab", "a", "abcd"]
    assert len(model.scripts) == 2  # those that went on to the end
    with pytest.raises(UserError, match="prompts=0"):
        list(stream_text(model, BYTES, [], max_new_tokens=5))


def test_a_prompt_is_read_once_for_all_its_samples() -> None:
    model = tiny_model(max_seq_len=CONTEXT).eval()
    read: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape)))
    decoder = Decoder(model, [[1, 2, 3], [4]], n_samples=3, max_new_tokens=3, kv_cache=True)
    chooser = TokenChooser(Sampling(), seed=1, n_samples=3, n_prompts=2, vocab_size=17)
    list(decode(decoder, chooser, max_new_tokens=3))
    assert read == [(1, 3), (1, 1), (6, 1), (6, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("window", [0, WINDOW])
def test_a_decoding_step_leaks_no_tensor_and_moves_no_buffer(window: int) -> None:
    model = model_of("gqa", "rope", window)
    decoder = Decoder(model, PROMPTS, n_samples=1, max_new_tokens=40, kv_cache=True)
    chooser = TokenChooser(Sampling(temperature=0), seed=1, n_samples=1, n_prompts=len(PROMPTS), vocab_size=17)

    def held() -> tuple[int, list[int]]:
        gc.collect()
        assert decoder.cache is not None
        buffers = [buffer.data_ptr() for layer in decoder.cache.layers for buffer in layer.buffers]
        return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()), [
            *buffers,
            decoder.ids_BT.data_ptr(),
        ]

    steps = decode(decoder, chooser, max_new_tokens=40)
    seen = [held() for done, _ in enumerate(steps) if done in (5, 20, 35)]
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("moe", options("moe"))
@pytest.mark.parametrize("attn", options("attn"))
def test_inference_weights_give_the_same_logits(attn: str, moe: str) -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    for tied in ("true", "false"):
        chosen = (f"attn={attn}", f"moe={moe}", f"model.tie_embeddings={tied}", "model.bias=true")
        for dtype, kernels in product((torch.float32, torch.bfloat16), (None, decode_kernels_here())):
            plain, changed = (tiny_model(*chosen).eval() for _ in range(2))
            changed.for_inference(dtype, kernels=kernels)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                outputs = []
                for model in (plain, changed):
                    cache = model.make_cache(1, 8)
                    steps = [model(ids, cache=cache)[:, -1:], model(ids[:, :1], cache=cache)]
                    outputs.append(model.logits(torch.cat(steps, 1)).float())
            exact = dtype == torch.float32
            scale = outputs[0].abs().max()
            torch.testing.assert_close(outputs[1], outputs[0], atol=(1e-5 if exact else 3e-2) * scale, rtol=1e-5)
            exact_names = {name for name, p in changed.named_parameters() if p.ndim > 1 and p.dtype == torch.float32}
            kept = {"embedding.weight", *(f"blocks.{i}.ffn.router.weight" for i in (0, 1))}
            assert exact or {name for name in exact_names if name.endswith("weight")} <= kept


@pytest.mark.parametrize("moe", options("moe"))
@pytest.mark.parametrize("attn", options("attn"))
def test_an_int8_model_is_the_model_with_rounded_matrices(attn: str, moe: str) -> None:
    chosen = (f"attn={attn}", f"moe={moe}", "model.bias=true")
    rounded, *changed = (tiny_model(*chosen).eval() for _ in range(3))
    bytes_before = sum(p.nbytes for p in rounded.parameters())
    table = rounded.embedding.weight.detach().clone()
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            if parameter.ndim > 1 and name.endswith("weight") and "router" not in name and "pos" not in name:
                int8, scale = quantize_rows(parameter)
                parameter.copy_(int8 * scale[..., None])
        head, rounded.embedding.weight = rounded.embedding.weight, torch.nn.Parameter(table)
    ids = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    for model, kernels in zip(changed, (None, decode_kernels_here()), strict=True):
        model.for_inference(torch.float32, int8=True, kernels=kernels)
        assert sum(p.nbytes for p in model.parameters()) < bytes_before / 2
        outputs = []
        with torch.no_grad():
            for each in (rounded, model):
                cache = each.make_cache(2, 8)
                steps = [each(ids, cache=cache), each(ids[:, :1], cache=cache)]
                logits = each.logits if each is model else lambda hidden: F.linear(hidden, head)
                outputs.append(logits(torch.cat(steps, 1)))
        torch.testing.assert_close(outputs[1], outputs[0], atol=float(1e-5 * outputs[0].abs().max()), rtol=1e-5)
        torch.testing.assert_close(model.head_weight, head.detach(), atol=1e-7, rtol=1e-6)


def test_bf16_bits_of_a_row_do_not_depend_on_the_batch_size() -> None:
    if not has_packed(torch.device("cpu"), torch.bfloat16):
        pytest.skip("oneDNN computes no bf16 here")
    numbers = torch.Generator().manual_seed(1)
    weight, x = (torch.randn(shape, generator=numbers) for shape in ((96, 64), (9, 64)))
    layer = PackedLinear(weight, None, dtype=torch.bfloat16)
    for n in (1, 2, 5):
        assert layer(x[:n]).equal(layer(x)[:n])
