"""Prints the page's tables from its two CSV files: python -m results.released_code.compare"""

from pathlib import Path

import pandas as pd
from scipy import stats

FOLDER = Path(__file__).parent


def scores(table):
    """Each seed's success rate, the mean of its last three evaluations."""
    seeds = table.dropna().groupby(["method", "code", "seed"]).score
    return seeds.apply(lambda x: x.tail(3).mean()).unstack().round(1)


def metrics(table):
    """Of each metric and window of 5,000 updates: both means, and p of Welch's t-test."""
    rows = []
    for (method, step), window in table.groupby(["method", "step"]):
        for metric in ("q_data", "critic_loss", "mse"):
            ours, released = (
                window[window.code == code][metric] for code in ("this code", "released code")
            )
            p = stats.ttest_ind(ours, released, equal_var=False).pvalue
            rows.append([method, step, metric, len(ours), ours.mean(), released.mean(), p])
    columns = ["method", "step", "metric", "seeds", "this code", "released code", "p"]
    return pd.DataFrame(rows, columns=columns).round(4)


def same_numbers(table):
    """The largest relative difference of Q up to three numbers of updates."""
    difference = (table.q_data_ours / table.q_data_released - 1).abs()
    return pd.Series({n: difference[table["update"] <= n].max() for n in (100, 1_000, 3_000)})


def main():
    table = pd.read_csv(FOLDER / "released_code.csv")
    print(scores(table).to_string(), metrics(table).to_string(index=False), sep="\n\n")
    print("\nsame random numbers, relative difference of Q up to an update")
    print(same_numbers(pd.read_csv(FOLDER / "same_numbers.csv")).to_string())


if __name__ == "__main__":
    main()
