"""The file that tells what a folder of dydit's holds: the one home of these names, for what writes, reads or replaces one."""

from __future__ import annotations

ADAPTER = "adapter_config.json"  # peft's name

CHECKPOINT = "config.json"

COMPARISON = "compare.json"

DEMO = "demo.json"

FRONTIER = "frontier.json"

LATENTS = "encode.json"

LOSSES = "losses.json"

METRICS = "metrics.jsonl"

PROFILE = "profile.json"

RECIPE = "recipe.json"

SAMPLES = "samples.json"

STUDY = "study.json"

UNFINISHED_DEMO = "unfinished.json"

WIDTH = "width.json"

# a folder with one of these is dydit's own: replacing it loses nothing else
OURS = frozenset(
    {CHECKPOINT, COMPARISON, DEMO, FRONTIER, LATENTS, LOSSES, METRICS, PROFILE, RECIPE, SAMPLES, STUDY, UNFINISHED_DEMO, WIDTH}
)
