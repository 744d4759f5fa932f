"""Values for every flag of `train` and `evaluate`: one that works, and one that does not."""

from collections.abc import Mapping
from typing import NamedTuple


class Case(NamedTuple):
    """A value that works and one that does not, each as the words after the flag; `beside`: what else must be said."""

    good: str
    bad: str
    beside: str = ""


EVAL = "--eval_strategy steps --eval_steps 2"
BEST = f"{EVAL} --save_steps 2 --load_best_model_at_end"

TRAIN: Mapping[str, Case] = {
    "cache": Case("c", "", ""),
    "student": Case("s.json", "shrink:layers=0"),
    "teacher": Case("./t", "./t", ""),
    "losses": Case("kl=1 ce=0.5", "kll"),
    "lora": Case("r=8 targets=q_proj", "rank=8", "--student base"),
    "load_in_4bit": Case("true", "true", "--lora r=8 --student base"),
    "temperature": Case("2", "0"),
    "feature_loss": Case("cosine", "cosine", ""),
    "temperature_schedule": Case("linear:1:0", "linear:1", "--temperature 2"),
    "loss_schedule": Case("kl=linear:1:0", "kl=bent:1:0"),
    "stages": Case("kl=1", "share=2 kl=1", "--stages 'share=0.5 ce=1'"),
    "adversarial": Case("fgm=0.5", "fgm=0"),
    "preset": Case("hinton", "hintom"),
    "eval_fraction": Case("0.3", "1"),
    "shuffle_row_groups": Case("2", "0"),
    "join": Case("example", "document", "--cache d"),
    "join_pick": Case("entropy", "variance", "--cache d --join example"),
    "where": Case("length<=512", "size<=512"),
    "lanes": Case("16", "0"),
    "allow_new_data": Case("true", "perhaps"),
    "batching": Case("pack", "packed"),
    "cache_version": Case("0", "x"),
    "local_cache": Case("copies", "s3://b/copies", "--cache s3://b/c"),
    "local_cache_gb": Case("10", "0", "--cache s3://b/c --local_cache copies"),
    "memory_cache_gb": Case("0", "-1"),
    "output_dir": Case("o", ""),
    "overwrite_output_dir": Case("true", "true"),
    "resume_from_checkpoint": Case("auto", ""),
    "per_device_train_batch_size": Case("4", "0"),
    "per_device_eval_batch_size": Case("4", "0"),
    "gradient_accumulation_steps": Case("2", "0"),
    "num_train_epochs": Case("2", "0"),
    "max_steps": Case("3", "0"),
    "learning_rate": Case("1e-4", "nan"),
    "lr_scheduler_type": Case("linear", "bent"),
    "lr_scheduler_kwargs": Case('{"num_cycles":1}', "[1]"),
    "warmup_steps": Case("3", "-1"),
    "weight_decay": Case("0.1", "-0.1"),
    "max_grad_norm": Case("0", "-1"),
    "optim": Case("adamw_torch", "lomo"),
    "optim_args": Case("momentum=0.9", "momentumm=0.9", "--optim sgd"),
    "optim_target_modules": Case("attn", "attn", "--optim galore_adamw"),
    "adam_beta1": Case("0.8", "1"),
    "adam_beta2": Case("0.99", "-1"),
    "adam_epsilon": Case("1e-6", "0"),
    "bf16": Case("true", "perhaps"),
    "fp16": Case("false", "true"),
    "tf32": Case("false", "true"),
    "activation_checkpointing": Case("true", "perhaps"),
    "activation_checkpointing_kwargs": Case(
        '{"use_reentrant":false}', '{"u":1}', "--activation_checkpointing"
    ),
    "gradient_checkpointing": Case("true", "false", "--activation_checkpointing"),
    "gradient_checkpointing_kwargs": Case('{"use_reentrant":false}', '{"u":1}', "--gradient_checkpointing"),
    "torch_compile": Case("true", "perhaps"),
    "torch_compile_backend": Case("aot_eager", "inducktor"),
    "torch_compile_mode": Case("max-autotune", "fast"),
    "torch_empty_cache_steps": Case("1", "0"),
    "dataloader_pin_memory": Case("false", "perhaps"),
    "seed": Case("7", "-1"),
    "data_seed": Case("7", "-1"),
    "full_determinism": Case("false", "perhaps"),
    "use_cpu": Case("true", "perhaps"),
    "logging_strategy": Case("epoch", "hourly"),
    "logging_steps": Case("1", "0"),
    "logging_first_step": Case("true", "perhaps"),
    "log_on_each_node": Case("false", "perhaps"),
    "log_level": Case("error", "loud"),
    "log_level_replica": Case("error", "loud"),
    "disable_tqdm": Case("true", "perhaps"),
    "include_num_input_tokens_seen": Case("true", "some"),
    "skip_memory_metrics": Case("false", "perhaps"),
    "report_to": Case("none", "tensorbored"),
    "eval_strategy": Case("epoch", "sometimes"),
    "eval_steps": Case("2", "0", "--eval_strategy steps"),
    "eval_delay": Case("2", "-1", "--eval_strategy steps"),
    "eval_on_start": Case("true", "perhaps", "--eval_strategy steps"),
    "save_strategy": Case("epoch", "never"),
    "save_steps": Case("3", "0"),
    "save_total_limit": Case("1", "0"),
    "load_best_model_at_end": Case("true", "perhaps", f"{EVAL} --save_steps 2"),
    "metric_for_best_model": Case("eval_kl", "eval_kll", BEST),
    "greater_is_better": Case("false", "true", BEST),
    "ddp_find_unused_parameters": Case("true", "perhaps"),
    "ddp_bucket_cap_mb": Case("10", "0"),
    "ddp_broadcast_buffers": Case("true", "perhaps"),
    "ddp_static_graph": Case("false", "perhaps"),
    "ddp_timeout": Case("60", "0"),
}
"""Flags that work here."""

SERVICE = {
    "ddp_backend": "gloo",
    "fsdp": "true",
    "fsdp_config": '{"reshard_after_forward":false}',
    "run_name": "mine",
    "project": "mine",
    "trackio_space_id": "x",
    "trackio_bucket_id": "x",
    "trackio_static_space_id": "x",
}
"""Flags that need a service in --report_to, or several ranks (see `test_ranks.py`): else they are refused."""

HARMFUL: Mapping[str, str] = {
    **dict.fromkeys(("use_liger_kernel", "use_cache", "auto_find_batch_size"), "true"),
    **dict.fromkeys(
        ("bf16_full_eval", "fp16_full_eval", "logging_nan_inf_filter", "batch_eval_metrics"), "true"
    ),
    **dict.fromkeys(
        ("prediction_loss_only", "eval_use_gather_object", "dataloader_persistent_workers"), "true"
    ),
    **dict.fromkeys(
        ("dataloader_drop_last", "remove_unused_columns", "ignore_data_skip", "do_train"), "true"
    ),
    **dict.fromkeys(
        ("restore_callback_states_from_checkpoint", "save_only_model", "save_on_each_node"), "true"
    ),
    **dict.fromkeys(("enable_jit_checkpoint", "push_to_hub", "hub_private_repo", "hub_always_push"), "true"),
    **dict.fromkeys(("do_eval", "do_predict"), "true"),
    **dict.fromkeys(
        ("average_tokens_across_devices", "eval_do_concat_batches", "dataloader_in_order"), "false"
    ),
    **dict.fromkeys(("dataloader_num_workers", "dataloader_prefetch_factor", "eval_accumulation_steps"), "2"),
    "label_smoothing_factor": "0.1",
    "neftune_noise_alpha": "5",
    "liger_kernel_config": '{"rope":true}',
    "deepspeed": "ds.json",
    "parallelism_config": "x",
    "accelerator_config": '{"split_batches":true}',
    "debug": "underflow_overflow",
    "include_for_metrics": "inputs",
    "label_names": "labels",
    "dataloader_multiprocessing_context": "fork",
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "size",
    "hub_token": "t",
    "hub_model_id": "m",
    "hub_strategy": "end",
    "hub_revision": "r",
    "local_rank": "0",
}
"""Flags that are refused unless they stand at their default, with a value that is not."""

EVALUATE: Mapping[str, Case] = {
    "cache": Case("c", ""),
    "student": Case("./s", ""),
    "students": Case("a b", "a"),
    "ensemble": Case("mean", "median", "--students ./a ./b"),
    "teacher": Case("./t", ""),
    "eval_fraction": Case("0.3", "1"),
    "where": Case("length<=512", "size<=512"),
    "batch_size": Case("4", "0"),
    "cache_version": Case("0", "x"),
    "speed_seconds": Case("0", "-1"),
    "save": Case("true", "perhaps"),
    "export": Case("onnx", "tflite"),
    "device": Case("cpu", ""),
    "local_cache": Case("copies", "s3://b/copies", "--cache s3://b/c"),
    "local_cache_gb": Case("10", "0", "--cache s3://b/c --local_cache copies"),
}

NO_TEXT = ("liger_kernel_config", "parallelism_config")
"""Values of Python that no text becomes."""

NEEDED = {"cache": "c", "student": "s.json", "output_dir": "o"}
