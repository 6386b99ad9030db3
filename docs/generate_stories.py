"""Write the stories for the page's tests, from the live stream's own producer: `python -m docs.generate_stories`."""

from __future__ import annotations

from tests.page.stage import STORIES, TOLD, tell


def main() -> None:
    for name in TOLD:
        (STORIES / f"{name}.jsonl").write_text(tell(name), encoding="utf-8")


if __name__ == "__main__":
    main()
