from jaxrlhf.data.report import Report


def test_the_report_names_what_was_left_out_and_leaves_out_what_was_not():
    report = Report(
        read=9, added=1, kept=7, rejected=1, ties_dropped=2, sequences=14, tokens=90, longest=12, truncated=3
    )
    assert report.lines() == [
        "7 examples of 9 rows and 1 more that these hold; left out: 1 bad, 2 ties",
        "90 tokens, in 14 sequences of 12 tokens at most",
        "3 sequences were cut at max_length",
    ]


def test_the_report_names_trained_tokens_bins_and_columns():
    report = Report(
        read=2,
        kept=2,
        sequences=2,
        tokens=9,
        trained_tokens=7,
        bins=1,
        longest=5,
        special_text=1,
        extra_columns=("id",),
    )
    assert report.lines()[0] == "2 examples of 2 rows; left out: none"
    assert report.lines()[1].endswith("7 of them to learn from, in 2 sequences of 5 tokens at most, packed into 1 rows")
    assert report.lines()[2:] == [
        "1 examples name special tokens in their text; encoded as plain text",
        "other columns: id",
    ]
