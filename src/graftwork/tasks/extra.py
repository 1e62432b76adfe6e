"""The 17 further tasks of Houlsby et al. (2019), "Parameter-Efficient Transfer Learning for NLP", and the 16 domains of
reviews of Liu, Qiu and Huang (2017), "Adversarial Multi-task Learning for Text Classification" (FDU-MTL), as data.

The 17 were collected by Wong et al. (2018), "Transfer Learning with Neural AutoML". Most are tables of crowdflower.com,
whose page of open data is gone: copies are on data.world and Kaggle. 20 Newsgroups alone has splits: of the others, a
tenth of the rows is held out for validation and a tenth for the test, rows with one text together.

What is cleaned: many of these tables are UTF-8 that was read as cp1252 and then saved on a Macintosh. Two spellings of
a label are one label, rows without a label or text are left out, and so are those that nobody could decide about.
"""

from typing import Any

from graftwork.tasks.cleaning import Cleaning
from graftwork.tasks.task import Task

_CROWDFLOWER = "https://data.world/crowdflower"
_MACINTOSH: dict[str, Any] = {"encodings": ("utf-8", "mac_roman"), "repair_mojibake": True}


def _published(name: str, file: str, text: str, label: str, labels: str | None, **fields: Any) -> Task:
    """A task of one table without splits, scored by accuracy."""
    cleaning = fields.pop("cleaning", _MACINTOSH)
    return Task(
        name=name,
        text=text,
        label=label,
        labels=None if labels is None else tuple(labels.split(" | ")),
        metrics=("accuracy", "f1_macro"),
        splits={"train": file},
        validation_fraction=0.1,
        test_fraction=0.1,
        cleaning=Cleaning(drop_missing=True, **cleaning),
        **{"homepage": _CROWDFLOWER, **fields},
    )


def _named(*tasks: Task) -> dict[str, Task]:
    return {task.name: task for task in tasks}


_STANCE = (
    "q1_from_reading_the_tweet_which_of_the_options_below_is_most_likely_to_be_true_about_the_stance_or_outlook_of_the_"
    "tweeter_towards_the_target"
)
_OPINION = "q2_which_of_the_options_below_is_true_about_the_opinion_in_the_tweet"

_NEWSGROUPS = (
    "alt.atheism | comp.graphics | comp.os.ms-windows.misc | comp.sys.ibm.pc.hardware | comp.sys.mac.hardware | "
    "comp.windows.x | misc.forsale | rec.autos | rec.motorcycles | rec.sport.baseball | rec.sport.hockey | sci.crypt | "
    "sci.electronics | sci.med | sci.space | soc.religion.christian | talk.politics.guns | talk.politics.mideast | "
    "talk.politics.misc | talk.religion.misc"
)

EXTRA: dict[str, Task] = _named(
    # Two emojis of the file are cut off in the middle.
    _published(
        "airline_sentiment",
        "Tweets.csv",
        "text",
        "airline_sentiment",
        "negative | neutral | positive",
        cleaning={"replace_undecodable": True},
    ),
    _published(
        "corporate_messaging",
        "Corporate-messaging-DFE.csv",
        "text",
        "category",
        "Action | Dialogue | Exclude | Information",
    ),
    _published(
        "disasters",
        "socialmedia-disaster-tweets-DFE.csv",
        "text",
        "choose_one",
        "Not Relevant | Relevant",
        cleaning={**_MACINTOSH, "drop_labels": ("Can't Decide",)},
    ),
    _published(
        "economic_news_relevance",
        "Full-Economic-News-DFE-839861.csv",
        "text",
        "relevance",
        "no | yes",
        cleaning={**_MACINTOSH, "drop_labels": ("not sure",)},
    ),
    _published(
        "emotion",
        "text_emotion.csv",
        "content",
        "sentiment",
        "anger | boredom | empty | enthusiasm | fun | happiness | hate | love | neutral | relief | sadness | "
        "surprise | worry",
    ),
    _published(
        "global_warming",
        "1377884570_tweet_global_warming.csv",
        "tweet",
        "existence",
        "No | Yes",
        cleaning={
            **_MACINTOSH,
            "spellings": {"N": "No", "Y": "Yes", "NA": "N/A"},
            "drop_labels": ("N/A",),
        },
    ),
    _published("political_audience", "Political-media-DFE.csv", "text", "audience", "constituency | national"),
    _published("political_bias", "Political-media-DFE.csv", "text", "bias", "neutral | partisan"),
    _published(
        "political_message",
        "Political-media-DFE.csv",
        "text",
        "message",
        "attack | constituency | information | media | mobilization | other | personal | policy | support",
    ),
    _published(
        "primary_emotions",
        "primary-plutchik-wheel-DFE.csv",
        "sentence",
        "emotion",
        "Aggression | Ambiguous | Anger | Anticipation | Awe | Contempt | Disapproval | Disgust | Fear | Joy | Love | "
        "Neutral | Optimism | Remorse | Sadness | Submission | Surprise | Trust",
    ),
    # The labels of these two are whole sentences.
    _published("progressive_opinion", "progressive-tweet-sentiment.csv", "tweet", _OPINION, None),
    _published("progressive_stance", "progressive-tweet-sentiment.csv", "tweet", _STANCE, None),
    _published(
        "us_economic_performance",
        "us-economic-newspaper.csv",
        "text",
        "relevance",
        "no | yes",
        cleaning={**_MACINTOSH, "drop_labels": ("not sure",)},
    ),
    _published(
        "news_aggregator",
        "newsCorpora.csv",
        "TITLE",
        "CATEGORY",
        "business | entertainment | health | technology",
        layout="lines",
        header=("ID", "TITLE", "URL", "PUBLISHER", "CATEGORY", "STORY", "HOSTNAME", "TIMESTAMP"),
        cleaning={"spellings": {"b": "business", "e": "entertainment", "m": "health", "t": "technology"}},
        homepage="https://archive.ics.uci.edu/ml/datasets/News+Aggregator",
    ),
    _published(
        "sms_spam",
        "SMSSpamCollection",
        "sms",
        "label",
        "ham | spam",
        data="ucirvine/sms_spam",
        layout="lines",
        header=("label", "sms"),
        cleaning={},
        homepage="https://archive.ics.uci.edu/dataset/228/sms+spam+collection",
    ),
    Task(
        name="20_newsgroups",
        data="SetFit/20_newsgroups",
        layout="class-folders",
        text="text",
        label="label_text",
        labels=tuple(_NEWSGROUPS.split(" | ")),
        metrics=("accuracy", "f1_macro"),
        splits={"train": "20news-bydate-train", "test": "20news-bydate-test"},
        cleaning=Cleaning(encodings=("latin-1",), drop_missing=True),
        homepage="http://qwone.com/~jason/20Newsgroups/",
    ),
    # The paper counts 157 classes, which is too many for the products, and about as many as there were issues.
    _published(
        "customer_complaints",
        "complaints.csv",
        "Consumer complaint narrative",
        "Issue",
        None,
        cleaning={},
        homepage="https://www.consumerfinance.gov/data-research/consumer-complaints/",
    ),
)
"""The 17 further tasks, by name."""

DOMAINS = (
    "apparel",
    "baby",
    "books",
    "camera_photo",
    "dvd",
    "electronics",
    "health_personal_care",
    "imdb",
    "kitchen_housewares",
    "magazines",
    "MR",
    "music",
    "software",
    "sports_outdoors",
    "toys_games",
    "video",
)
"""The domains, by the names of their files."""

# Of 1,600 training rows the paper holds out 200. MR is in cp1252, and two characters of dvd are in no encoding.
_ENCODED: dict[str, dict[str, Any]] = {"MR": {"encodings": ("utf-8", "cp1252")}}

REVIEWS: dict[str, Task] = _named(
    *(
        Task(
            name=f"fdu_mtl_{domain.lower()}",
            text="text",
            labels=("negative", "positive"),
            metrics=("accuracy",),
            layout="lines",
            header=("label", "text"),
            splits={"train": f"{domain}.task.train", "test": f"{domain}.task.test"},
            validation_fraction=0.125,
            cleaning=Cleaning(
                drop_missing=True,
                spellings={"0": "negative", "1": "positive"},
                **_ENCODED.get(domain, {"replace_undecodable": True}),
            ),
            homepage="https://github.com/ccsasuke/man/tree/master/data/fdu-mtl",
        )
        for domain in DOMAINS
    )
)
"""The 16 domains of reviews, by name."""
