"""Texts and chats from files, folders and Hugging Face datasets, row by row.

Everything is read by `datasets` as a stream, so a corpus of any size costs no memory and no copy on
disk. A row is a plain text or a list of chat messages, which is rendered by the chat template of
the model that will run over it.
"""

import contextlib
import glob
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow
from transformers import PreTrainedTokenizerBase

from aotoolkit.data.context import render_unfinished
from aotoolkit.data.source import file_digest
from aotoolkit.errors import ChatTemplateError, DataError, PromptError
from aotoolkit.tracing.encoding import Message, render_chat

TextUnit = Literal["line", "paragraph", "document"]

# File name suffix -> builder of `datasets`.
_LOADERS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
# Column names in use on the Hub; a chat column may be called either way.
_COLUMNS = ("text", "messages", "conversation", "conversations")
# ShareGPT's names of the roles.
_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """Where texts are, and how they lie there.

    Attributes:
        data: a .txt, .jsonl or .parquet file, a folder of them (read in the order of their paths),
            or the name of a dataset on the Hugging Face Hub. Only a name that is no path of this
            machine reaches for the network.
        column: the column with the texts, or with lists of chat messages (`role` and `content`,
            or `from` and `value`); default: the one that is called text, messages, conversation
            or conversations. A column `finished` may say of a chat that its last turn is left open,
            and a column `chat_template_kwargs` what the template is given.
        subset: of a dataset on the Hub, such as "sample-10BT".
        split: of a dataset on the Hub.
        revision: of a dataset on the Hub; give a commit to read the same texts next year.
        unit: what one text is in a .txt file.
    """

    data: str | Path
    column: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    unit: TextUnit = "line"

    def __post_init__(self) -> None:
        if self.unit not in get_args(TextUnit):
            raise DataError(f"unit={self.unit!r} is unknown. Give one of {get_args(TextUnit)}.")

    @property
    def is_local(self) -> bool:
        """Whether `data` is a path of this machine, as against a name on the Hub."""
        given = str(self.data)
        path = Path(given).expanduser()
        if path.exists():
            return True
        looks_local = isinstance(self.data, Path) or given.startswith((".", "/", "~"))
        if looks_local or given.count("/") > 1 or path.suffix in _LOADERS:
            raise DataError(
                f"There is no file or folder {given!r}. Give a {_suffixes()} file, a folder of "
                "them, or the name of a dataset on the Hugging Face Hub ('owner/name')."
            )
        return False

    def files(self) -> list[Path]:
        """The files of local data, in the order in which they are read.

        Raises:
            DataError: there is none, one is empty, or `data` is a name on the Hub.
        """
        if not self.is_local:
            raise DataError(f"{self.data!r} is a dataset on the Hub, which has no files here.")
        root = Path(self.data).expanduser()
        if root.is_dir():
            found = sorted(path for path in root.rglob("*") if path.suffix in _LOADERS)
        else:
            found = [root] if root.suffix in _LOADERS else []
        if not found:
            raise DataError(f"{str(self.data)!r} has no text: give {_suffixes()} files.")
        for path in found:
            if not path.stat().st_size:
                raise DataError(f"{str(path)!r} is empty. Remove it, or give a file with texts.")
        return found


@dataclass(frozen=True, slots=True)
class TextRecord:
    """One text.

    Attributes:
        row: its row in the data, counted from 0 and over rows without text too.
        content: a text, or chat messages.
        finished: whether the last message is whole, as against a reply that was cut off.
        chat_template_kwargs: what the template is to be given, as where the chat was written.
    """

    row: int
    content: str | tuple[Message, ...]
    finished: bool = True
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)


def read_texts(spec: TextSpec) -> Iterator[TextRecord]:
    """The texts of `spec` in their order; rows without text are left out.

    Raises:
        DataError: nothing can be read there, there is no such column (the message lists those
            that there are), a row is neither text nor chat, or no row holds any text.
    """
    column = spec.column
    found = False
    for row, values in enumerate(_rows(spec)):
        if column is None:
            column = _guess_column(spec, values)
        if column not in values:
            raise DataError(
                f"{_name(spec)} has no column {column!r}. Its columns: {', '.join(values)}."
            )
        content = _content(spec, row, values[column])
        if content:
            found = True
            yield TextRecord(
                row,
                content,
                finished=values.get("finished") is not False,
                chat_template_kwargs=_template_kwargs(spec, row, values),
            )
    if not found:
        raise DataError(f"{_name(spec)} holds no text. Give data with at least one text in it.")


def describe_texts(spec: TextSpec) -> dict[str, object]:
    """JSON for a manifest: names and settings, and the digest of local files."""
    settings: dict[str, object] = {"column": spec.column}
    if not spec.is_local:
        return {
            "data": str(spec.data),
            "subset": spec.subset,
            "split": spec.split,
            "revision": spec.revision,
            **settings,
        }
    files = spec.files()
    whole = hashlib.sha256("\n".join(file_digest(path) for path in files).encode())
    if any(path.suffix == ".txt" for path in files):
        settings["unit"] = spec.unit
    return {
        "data": Path(spec.data).name,  # the folder that it lies in is this machine's affair
        "files": len(files),
        "digest": whole.hexdigest(),
        **settings,
    }


def text_ids(
    tokenizer: PreTrainedTokenizerBase,
    content: str | Sequence[Message],
    *,
    max_length: int,
    finished: bool = True,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """Token ids as `TracedModel.encode` would give them, cut after `max_length`.

    A text gets the tokenizer's special tokens; a chat is rendered by the chat template, and ends
    with its last message where that is not finished.

    Raises:
        DataError: the template does not say where an unfinished message ends.
        ChatTemplateError: a chat, and the tokenizer has no template.
        PromptError: the template refuses the messages.
    """
    if isinstance(content, str):
        ids: Any = tokenizer(content, verbose=False)["input_ids"]
    else:
        if finished:
            text = render_chat(
                tokenizer,
                content,
                add_generation_prompt=False,
                chat_template_kwargs=chat_template_kwargs,
            )
        else:
            text = render_unfinished(tokenizer, content, chat_template_kwargs=chat_template_kwargs)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tuple(ids[:max_length])


@contextlib.contextmanager
def naming_row(spec: TextSpec, record: TextRecord) -> Iterator[None]:
    """Inside, a prompt that the chat template refuses is an error that names its row."""
    try:
        yield
    except ChatTemplateError:
        raise  # the tokenizer's fault, not the row's
    except PromptError as error:
        raise DataError(f"{_name(spec)}, row {record.row}: {error}") from error


def _rows(spec: TextSpec) -> Iterator[Mapping[str, Any]]:
    # Slow to import, and needed only where texts are read.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    readable = (DatasetsError, pyarrow.ArrowException, UnicodeDecodeError, OSError)
    if not spec.is_local:
        try:
            yield from load_dataset(
                str(spec.data),
                spec.subset,
                split=spec.split,
                revision=spec.revision,
                streaming=True,
            )
        except (*readable, ValueError) as error:
            raise DataError(
                f"Cannot read the dataset {spec.data!r} (subset {spec.subset!r}, split "
                f"{spec.split!r}) of the Hugging Face Hub: {error} Check the names, or give a "
                f"{_suffixes()} file or a folder of them."
            ) from error
        return
    for path in spec.files():
        loader = _LOADERS[path.suffix]
        options: dict[str, Any] = {}
        if loader == "text":
            options = {"sample_by": spec.unit, "encoding": "utf-8-sig"}
        try:
            yield from load_dataset(
                loader, data_files=glob.escape(str(path)), split="train", streaming=True, **options
            )
        except readable as error:
            raise DataError(f"Cannot read {str(path)!r}: {error}") from error


def _guess_column(spec: TextSpec, values: Mapping[str, Any]) -> str:
    known = [name for name in _COLUMNS if name in values]
    if len(known) == 1:
        return known[0]
    which = f"Several may hold the texts ({', '.join(known)})" if known else "None is known"
    raise DataError(
        f"{which} among the columns of {_name(spec)}: {', '.join(values)}. Name one of them by "
        "`column`."
    )


def _content(spec: TextSpec, row: int, value: Any) -> str | tuple[Message, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, list) and all(isinstance(message, Mapping) for message in value):
        return tuple(_message(spec, row, message) for message in value)
    raise DataError(
        f"{_name(spec)}, row {row}: expected a text or a list of chat messages, found "
        f"{type(value).__name__} {str(value)[:80]!r}. Name another column by `column`."
    )


def _template_kwargs(spec: TextSpec, row: int, values: Mapping[str, Any]) -> Mapping[str, Any]:
    given = values.get("chat_template_kwargs")
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise DataError(
            f"{_name(spec)}, row {row}: chat_template_kwargs is {str(given)[:80]!r}; expected a "
            "mapping, such as {'enable_thinking': false}."
        )
    # A row without an argument that others have holds a null there.
    return {name: value for name, value in given.items() if value is not None}


def _message(spec: TextSpec, row: int, message: Mapping[str, Any]) -> Message:
    role, content = message.get("role"), message.get("content")
    if role is None:
        role, content = message.get("from"), message.get("value")
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(
            f"{_name(spec)}, row {row}: a chat message is a mapping with the strings 'role' and "
            f"'content' (or 'from' and 'value'); found {str(dict(message))[:120]}."
        )
    return {"role": _ROLES.get(role, role), "content": content}


def _name(spec: TextSpec) -> str:
    return repr(str(spec.data))


def _suffixes() -> str:
    return " or ".join((", ".join(list(_LOADERS)[:-1]), list(_LOADERS)[-1]))
