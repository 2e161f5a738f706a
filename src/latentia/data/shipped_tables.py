"""Tables that come with the package: three of scikit-learn, and one that is drawn from a stated process."""

from collections.abc import Callable

import numpy as np

from latentia.rng import seed_from

Columns = dict[str, np.ndarray]


def people(rows: int = 30_000, seed: int = 0) -> Columns:
    """A table of mixed kinds with a known process: eleven columns of people who rent or own a home.

    | column | kind | drawn from |
    | --- | --- | --- |
    | region | categorical | north .4, south .3, east .2, west .09, islands .01 |
    | born | date | age years before 2020-01-01, and up to a year |
    | age | integer | 18 + 62 Beta(2, 2.5), rounded |
    | education | categorical | school, college, university, doctorate; the later, the older and the more northern |
    | hours | integer | a mixture: .7 N(40, 3), .2 N(20, 5), .1 N(55, 6), cut to [1, 90] |
    | married | boolean | with probability logistic((age - 32) / 8) .75 |
    | children | integer | Poisson(1.6 married + .2), at most 8 |
    | income | numeric | exp of a line in education, log hours and age, with noise .35; rounded to .01 |
    | savings | numeric | .2 income exp(N(0, .8)), 0 for one in five; missing for 8 %, more often of low incomes |
    | car | categorical | none, small, large, electric; by income and region; missing for 3 % |
    | owner | boolean | the target: with probability logistic(1.2 log(income / 30 000) + (age - 45) / 12 + .5 married) |

    Args:
        rows: how many. Default 30 000.
        seed: equal seeds give equal rows. Default 0.

    Example:
        >>> {name: str(values[0]) for name, values in people(3).items()}["region"] in ("north", "south", "east")
        True
    """
    random = np.random.default_rng(seed_from(seed, "people"))
    region = random.choice(["north", "south", "east", "west", "islands"], rows, p=[0.4, 0.3, 0.2, 0.09, 0.01])
    age = np.round(18 + 62 * random.beta(2, 2.5, rows)).astype(np.int64)
    born = np.datetime64("2020-01-01", "D") - (age * 365.25 + random.uniform(0, 365.25, rows)).astype(np.int64)
    level = random.normal(0, 1, rows) + 0.4 * (region == "north") + np.minimum(age - 18, 12) / 8 - 1
    education = np.array(["school", "college", "university", "doctorate"])[np.digitize(level, [-0.1, 0.9, 2.0])]
    parts = random.choice(3, rows, p=[0.7, 0.2, 0.1])
    hours = np.array([40.0, 20.0, 55.0])[parts] + np.array([3.0, 5.0, 6.0])[parts] * random.normal(0, 1, rows)
    hours = np.clip(np.round(hours), 1, 90).astype(np.int64)
    married = random.uniform(0, 1, rows) < 0.75 * _logistic((age - 32) / 8)
    children = np.minimum(random.poisson(1.6 * married + 0.2), 8)
    log_income = 9.6 + 0.25 * np.digitize(level, [-0.1, 0.9, 2.0]) + 0.8 * np.log(hours / 40) + (age - 18) / 60
    income = np.round(np.exp(log_income + 0.35 * random.normal(0, 1, rows)), 2)
    savings = np.round(0.2 * income * np.exp(0.8 * random.normal(0, 1, rows)), 2)
    savings[random.uniform(0, 1, rows) < 0.2] = 0
    savings[random.uniform(0, 1, rows) < np.where(income < 15_000, 0.16, 0.06)] = np.nan
    wealth = np.log(income / 20_000) + 0.6 * random.normal(0, 1, rows) - 0.5 * (region == "islands")
    kinds = np.array(["none", "small", "large", "electric"])[np.digitize(wealth, [-0.8, 0.5, 1.3])].astype(object)
    kinds[random.uniform(0, 1, rows) < 0.03] = None
    chance = _logistic(1.2 * np.log(income / 30_000) + (age - 45) / 12 + 0.5 * married)
    owner = random.uniform(0, 1, rows) < chance
    return {
        "region": region, "born": born, "age": age, "education": education, "hours": hours, "married": married,
        "children": children, "income": income, "savings": savings, "car": kinds, "owner": owner,
    }  # fmt: skip


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _scikit_learn(name: str, target: str) -> Columns:
    import sklearn.datasets

    found = getattr(sklearn.datasets, f"load_{name}")()
    names = [str(column).removesuffix(" (cm)").replace(" ", "_") for column in found.feature_names]
    classes = np.array([str(one) for one in found.target_names])[found.target]
    return {**{column: values for column, values in zip(names, found.data.T)}, target: classes}


# name -> () -> columns, and the target among them
SHIPPED: dict[str, Callable[[], tuple[Columns, str]]] = {
    "iris": lambda: (_scikit_learn("iris", "species"), "species"),
    "wine": lambda: (_scikit_learn("wine", "cultivar"), "cultivar"),
    "breast_cancer": lambda: (_scikit_learn("breast_cancer", "diagnosis"), "diagnosis"),
    "people": lambda: (people(), "owner"),
}
