"""LoRA on MRPC by peft and transformers' Trainer: as peft's documentation shows it, or as a skilled user writes it.

Run as `python -m benchmarks.peft_script --model FOLDER --data FOLDER --output FOLDER [--epochs 3] [--skilled]`. It
follows peft's quick tour: float32, rate 1e-3, batches of 32 rows that are drawn at random and padded to their longest,
the checkpoint with the best accuracy. A skilled user has bfloat16 by autocast, and rows of like lengths in a batch.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LENGTH = 128


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Return the pairs of sentences of a file of MRPC, and their labels."""
    with file.open(encoding="utf-8-sig", newline="") as opened:
        rows = csv.DictReader(opened, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [
            {"sentence1": row["#1 String"], "sentence2": row["#2 String"], "label": int(row["Quality"])} for row in rows
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Tune, and print the scores of the validation rows as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peft_script")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--skilled", action="store_true")
    options = parser.parse_args(argv)

    import torch
    from datasets import Dataset
    from peft import LoraConfig, TaskType, get_peft_model
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def encoded(file: str) -> Dataset:
        rows = Dataset.from_list(rows_of(options.data / file))
        return rows.map(
            lambda batch: tokenizer(batch["sentence1"], batch["sentence2"], truncation=True, max_length=LENGTH),
            batched=True,
            remove_columns=["sentence1", "sentence2"],
        )

    def scores(prediction: Any) -> dict[str, float]:
        said = prediction.predictions.argmax(axis=-1)
        labels = prediction.label_ids
        return {"accuracy": float(accuracy_score(labels, said)), "f1": float(f1_score(labels, said))}

    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=32, lora_dropout=0.1)
    model = get_peft_model(model, config)
    skilled: dict[str, Any] = {}
    if options.skilled:
        skilled = {"bf16": True, "train_sampling_strategy": "group_by_length", "use_cpu": not torch.cuda.is_available()}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output,
            learning_rate=1e-3,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=32,
            num_train_epochs=options.epochs,
            weight_decay=0.01,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            report_to="none",
            disable_tqdm=True,
            **skilled,
        ),
        train_dataset=encoded("train.tsv"),
        eval_dataset=encoded("dev.tsv"),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=scores,
    )
    trainer.train()
    found = trainer.evaluate()
    model.save_pretrained(f"{options.output}/adapter")
    print(json.dumps({name: found[f"eval_{name}"] for name in ("accuracy", "f1")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
