"""Synthetic studies with the shape of real ones."""

import math
from typing import Any

from scipy import stats

from tinyllm.programs.cost import ModelCost
from tinyllm.studies.compare.results import Arm, Difference, Run, Study

NAMES = ("mha", "gqa", "mqa", "mla", "mha swiglu", "gqa swiglu", "mqa swiglu", "mla swiglu", "linear", "rwkv", "ssm")
LEVELS = (1.7866, 1.7995, 1.8065, 1.8156, 1.771, 1.778, 1.792, 1.797, 1.86, 1.83, 1.841, 1.75)
KV = (2048, 1024, 512, 640, 2048, 1024, 512, 640, 0, 0, 96, 2048)
STEPS = (1, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600)


def study(*, arms: int = 4, seeds: int = 3, metric: str = "val/bpb", **changes: Any) -> Study:
    """A study of attention types with every field filled; ``changes`` replace fields."""
    names = [*NAMES, "attn=mha ffn.d_ff=2048 optimizer.weight_decay=0.05 model.n_layers=12"][:arms]
    made = [arm(name, place) for place, name in enumerate(names)]
    runs = [run(name, place, seed, metric) for place, name in enumerate(names) for seed in range(1, seeds + 1)]
    fields: dict[str, Any] = {
        "question": "With the same number of parameters and the same tokens, which attention predicts best?",
        "command": "python -m tinyllm.compare attn=mha,gqa,mqa,mla seeds=3 match=params budget=tokens",
        "metric": metric,
        "match": "params",
        "match_by": ["ffn.d_ff"],
        "tolerance": 0.01,
        "budget": "tokens",
        "amount": 2457600.0,
        "effect": 0.01,
        "seeds": list(range(1, seeds + 1)),
        "seeds_note": "as many as were asked for",
        "reference": names[0],
        "arms": made,
        "runs": runs,
        "differences": [difference(name, names[0], runs) for name in names[1:]],
        "verdicts": [f"{name} is worse than {names[0]}, or not." for name in names[1:]]
        + ["No difference below 0.012 can be seen with these seeds."],
        "notes": [],
        "provenance": {
            "versions": {"tinyllm": "0.1.0", "torch": "2.13.0"},
            "machine": "Linux x86_64, 2 cores",
            "commit": "8c83b30",
            "data": "5d1f7c0a",
        },
    }
    return Study(**(fields | changes))


def account(place: int) -> ModelCost:
    """Costs of ``model=nano``, slightly different for each arm."""
    return ModelCost(
        parameters=1_043_584 + 256 * place,
        active_parameters=1_043_584 + 256 * place,
        flops_per_token=7_041_024 + 50_000 * (place % 5),
        decode_flops_per_token=2_347_008 + 9_000 * place,
        kv_bytes_per_token=KV[place],
    )


def arm(name: str, place: int, **changes: Any) -> Arm:
    """The arm at this index of the study."""
    cost = account(place)
    fields: dict[str, Any] = {
        "name": name,
        "settings": [f"attn={name.split()[0]}"],
        "overrides": [f"attn={name.split()[0]}", "model=nano", f"ffn.d_ff={512 + 8 * place}", "trainer.max_steps=600"],
        "solved": {"ffn.d_ff": 512 + 8 * place},
        "account": cost,
        "mismatch": 256 * place / 1_043_584,
        "max_steps": 600,
        "tokens": 2_457_600,
        "flops": cost.flops_per_token * 2_457_600,
        "tuned": {"optimizer.lr": 0.003} if place else {"optimizer.lr": 0.01},
        "trials": [
            {"optimizer.lr": lr, "value": LEVELS[place] + 0.1 * abs(math.log10(lr / (0.003 if place else 0.01)))}
            for lr in (0.001, 0.003, 0.01)
        ],
        "decode_tokens_per_s": 410.25 - 13 * place,
        "probes": {"recall": 0.98 - 0.05 * place, "copying": 0.75},
    }
    return Arm(**(fields | changes))


def run(name: str, place: int, seed: int, metric: str = "val/bpb", **changes: Any) -> Run:
    """A finished run; its metric falls with the steps and ends near the arm's level."""
    shift = 0.006 * math.sin(3 * seed + place) + 0.003 * math.cos(7 * seed)
    records = []
    for step in STEPS:
        tokens = step * 4096
        fall = 2.2 * math.exp(-((step / 70) ** 0.6))
        seconds = tokens / (45_000 - 900 * place) + 0.01 * seed
        flops = account(place).flops_per_token * tokens
        records.append(
            {
                "step": step,
                "tokens": tokens,
                "flops": flops,
                "seconds": seconds,
                metric: LEVELS[place] + shift + fall,
                "val/tokens": 8192,
            }
        )
    directory = f"runs/{name.replace(' ', '_').replace('=', '-')}_s{seed}_{place:04x}"
    fields: dict[str, Any] = {
        "arm": name,
        "seed": seed,
        "path": directory,
        "command": f"python -m tinyllm.train attn={name.split()[0]} seed={seed} run.dir={directory}",
        "status": "finished",
        "value": records[-1][metric],
        "records": records,
        "tokens_per_s": 45_095.14 - 900 * place + seed,
        "peak_memory_bytes": 371_000_000 + 1_000_000 * place + seed,
        "seconds": 54.6 + 1.1 * place,
        "sha256": {"metrics.jsonl": f"{place:02x}{seed:02x}" * 16, "run.json": f"{seed:02x}{place:02x}" * 16},
    }
    return Run(**(fields | changes))


def failed(name: str, place: int, seed: int, error: str) -> Run:
    """A run that failed before its first evaluation."""
    return run(name, place, seed, status="failed", error=error, value=None, records=[], seconds=None)


def difference(name: str, reference: str, runs: list[Run]) -> Difference:
    """Difference paired by seed, with Student's t interval."""
    values = {(one.arm, one.seed): one.value for one in runs if one.value is not None}
    seeds = sorted(seed for arm, seed in values if arm == name and (reference, seed) in values)
    found = [values[name, seed] - values[reference, seed] for seed in seeds]
    n = len(found)
    mean = sum(found) / n if n else math.nan
    fields: dict[str, Any] = dict.fromkeys(("sd", "low", "high", "p", "p_corrected", "detectable", "seeds_needed"))
    if n > 1:
        sd = math.sqrt(sum((one - mean) ** 2 for one in found) / (n - 1))
        half = float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
        p = float(2 * stats.t.sf(abs(mean) / (sd / math.sqrt(n)), n - 1))
        fields = {"sd": sd, "low": mean - half, "high": mean + half, "p": p, "p_corrected": min(1.0, 3 * p)}
        fields |= {"detectable": 2.5 * half, "seeds_needed": 9}
    return Difference(arm=name, seeds=seeds, mean=mean, **fields)
