"""How the files of this folder were made from their sources: python cut.py SOURCE_FOLDER."""

import csv
import gzip
import io
import sys
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a source file."""
    with path.open(newline="", encoding="utf-8") as source:
        return list(csv.DictReader(source))


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Rows as gzip CSV without a time stamp: the same input gives the same bytes."""
    text = io.StringIO()
    out = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    out.writeheader()
    out.writerows(rows)
    (HERE / name).write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))


def micros(seconds: str) -> int:
    """Seconds as whole microseconds, half-even."""
    return int((Decimal(seconds) * 10**6).quantize(Decimal(1), ROUND_HALF_EVEN))


def arrivals(source: list[dict[str, str]]) -> list[dict[str, int]]:
    """Microseconds since the first request, and token counts."""
    moments = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in source]
    return [
        {
            "offset_us": (moment - moments[0]) // timedelta(microseconds=1),
            "context_tokens": int(row["ContextTokens"]),
            "generated_tokens": int(row["GeneratedTokens"]),
        }
        for moment, row in zip(moments, source, strict=True)
    ]


def calls(source: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Recorded calls, times in microseconds."""
    return [
        {
            "provider": row["provider"],
            "model": row["model"],
            "error_code": row["error_code"],
            "first_token_us": micros(row["ttft_s"]),
            "latency_us": micros(row["end_to_end_latency_s"]),
        }
        for row in source
    ]


def answers(source: list[dict[str, str]]) -> list[dict[str, int]]:
    """Whether each of two models was right, 0 or 1 per prompt."""
    return [
        {
            "larger": int(row["gpt-4-1106-preview"] == "True"),
            "smaller": int(row["mixtral-8x7b-instruct-v0.1"] == "True"),
        }
        for row in source
    ]


def main(folder: Path) -> None:
    """Writes the four files."""
    write("arrivals.csv.gz", arrivals(read(folder / "azure_llm_inference_2023_code.csv")))
    write("calls.csv.gz", calls(read(folder / "llmperf_requests_2023.csv")))
    write("prices.csv.gz", read(folder / "model_price_history.csv"))
    write("answers.csv.gz", answers(read(folder / "routellm_gsm8k_correct.csv")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
