"""Run trials: batches, engines, shards, resuming, replay."""
