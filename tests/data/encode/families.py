r"""The chat templates of today's models, as TRL ships them, each on a tokenizer that has its model's tokens.

The vocabulary is small, but text is cut as the models cut it: a newline merges with what stands beside it, so that
`<think>\n` and `\n</think>` in one text have other ids than apart.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from alignkit.data.rows.conversation import Conversation, Message

# Qwen's, which is cl100k's but for single digits. Punctuation takes the newlines after it; newlines go together.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SENTENCES = [
    "The user asks about the weather.\n\nThe answer of the assistant is short.\n\n",
    '<tool>\n{"name": "weather", "arguments": {"city": "here"}}\n</tool>\n<tools>\n</tools>\n',
    "system\nuser\nassistant\n\n\nanalysis final commentary to=functions\n",
]


@dataclass(frozen=True)
class Family:
    """What the tokenizer of a model has besides its vocabulary.

    Attributes:
        eos: the token that `eos_token` names.
        bos: the token that `bos_token` names, if any.
        special: further special tokens.
        plain: added tokens that are not special: a decoding without special tokens keeps them.
        adds_bos: a text begins with bos unless special tokens are left out.
        rstrip: further special tokens that take the white space after them.
    """

    eos: str
    bos: str = ""
    special: str = ""
    plain: str = ""
    adds_bos: bool = False
    rstrip: str = ""

    @property
    def added(self) -> list[AddedToken]:
        """All of them, in order."""
        return [
            *(AddedToken(word, special=True, normalized=False) for word in unique(self.bos, self.eos, self.special)),
            *(AddedToken(word, special=True, normalized=False, rstrip=True) for word in unique(self.rstrip)),
            *(AddedToken(word, special=False, normalized=False) for word in unique(self.plain)),
        ]


def unique(*words: str) -> Iterable[str]:
    return dict.fromkeys(word for text in words for word in text.split())


CHATML = "<|endoftext|> <|im_start|> <|im_end|>"
QWEN = f"{CHATML} <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
CALL, RESPONSE, THINK = "<tool_call> </tool_call>", "<tool_response> </tool_response>", "<think> </think>"
HEADER = "<|start_header_id|> <|end_header_id|> <|eot_id|> <|end_of_text|>"
COHERE = "<|START_OF_TURN_TOKEN|> <|SYSTEM_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|>"
LFM = "<|endoftext|> <|im_start|> <|tool_call_start|> <|tool_call_end|>"
DEEPSEEK_ROLES = f"<｜User｜> <｜Assistant｜> {THINK}"
DEEPSEEK_TOOLS = " ".join(
    f"<｜tool▁{name}｜>"
    for name in ["sep"]
    + [f"{what}▁{end}" for what in ["calls", "call", "outputs", "output"] for end in ["begin", "end"]]
)
BOS_DEEPSEEK, EOS_DEEPSEEK = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"

# By the beginning of a template's name; of several the longest counts.
FAMILIES: dict[str, Family] = {
    "cohere": Family("<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>", plain=COHERE, adds_bos=True),
    "cohere2": Family(
        "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>", plain=f"{COHERE} <|START_RESPONSE|> <|END_RESPONSE|>", adds_bos=True
    ),
    "deepseek_r1_distill": Family(EOS_DEEPSEEK, BOS_DEEPSEEK, plain=DEEPSEEK_ROLES, adds_bos=True),
    "deepseekv3": Family(EOS_DEEPSEEK, BOS_DEEPSEEK, plain=f"{DEEPSEEK_ROLES} {DEEPSEEK_TOOLS}", adds_bos=True),
    "gemma": Family("<eos>", "<bos>", "<pad> <start_of_turn> <end_of_turn>", adds_bos=True),
    "gemma3": Family("<eos>", "<bos>", "<pad> <start_of_turn> <end_of_turn> <start_of_image>", adds_bos=True),
    "gemma4": Family(
        "<eos>",
        "<bos>",
        "<pad> <|turn> <turn|> <|channel> <channel|> <|think|> <|tool> <tool|> <|tool_call> <tool_call|> "
        '<|tool_response> <tool_response|> <|"|> <|image|> <|audio|> <|video|>',
        adds_bos=True,
    ),
    "glm4moe": Family(
        "<|endoftext|>",
        special="[gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|> /nothink",
        plain=f"{THINK} {CALL} {RESPONSE} <arg_key> </arg_key> <arg_value> </arg_value>",
    ),
    "gptoss": Family(
        "<|return|>",
        "<|startoftext|>",
        "<|endoftext|> <|start|> <|end|> <|message|> <|channel|> <|constrain|> <|call|>",
    ),
    "lfm2": Family(
        "<|im_end|>",
        "<|startoftext|>",
        f"{LFM} <|tool_list_start|> <|tool_list_end|> <|tool_response_start|> <|tool_response_end|>",
        adds_bos=True,
    ),
    "lfm2_2_5": Family("<|im_end|>", "<|startoftext|>", LFM, THINK, adds_bos=True),
    "llama3": Family("<|eot_id|>", "<|begin_of_text|>", HEADER, adds_bos=True),
    "llama3_1": Family("<|eot_id|>", "<|begin_of_text|>", f"{HEADER} <|eom_id|> <|python_tag|>", adds_bos=True),
    "llama3_2": Family("<|eot_id|>", "<|begin_of_text|>", f"{HEADER} <|eom_id|> <|python_tag|>", adds_bos=True),
    "muse_glimmer": Family(
        "<|eot|>", "<|begin_of_text|>", "<|start|> <|message|> <|eom|> <|patch|> <|video|>", adds_bos=True
    ),
    "nemotron_3": Family("<|im_end|>", "<s>", "<unk> </s> <|im_start|>", f"{THINK} {CALL}"),
    "phi3": Family("<|endoftext|>", "<s>", "<unk>", rstrip="<|system|> <|user|> <|assistant|> <|end|>"),
    "qwen2_5": Family("<|im_end|>", special=QWEN, plain=CALL),
    "qwen3": Family("<|im_end|>", special=QWEN, plain=f"{CALL} {RESPONSE} {THINK}"),
}

FOLDER = files("trl").joinpath("chat_templates")
# A vision model's template writes its pictures into the prompt; DiffusionGemma's model does not write left to right.
OTHER_MODELS = ("idefics", "llava", "smolvlm", "diffusion")
TEXT_TEMPLATES: list[str] = sorted(
    path.name.removesuffix(".jinja")
    for path in FOLDER.iterdir()
    if path.name.endswith(".jinja") and "_vl" not in path.name and not path.name.startswith(OTHER_MODELS)
)


def family_of(template: str) -> Family:
    """The family of a template by its name."""
    return FAMILIES[max((name for name in FAMILIES if template.startswith(name)), key=len)]


@cache
def vocabulary() -> str:
    """A byte-level BPE in the JSON of its library, without any added token."""
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(SENTENCES, trainer)
    text: str = core.to_str()
    return text


@cache
def family_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a template's model, with the template. It is shared: no test may change it."""
    family = family_of(template)
    core = Tokenizer.from_str(vocabulary())
    core.add_tokens(family.added)
    if family.adds_bos:
        bos: Any = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, core.token_to_id(family.bos))]
        )
        core.post_processor = bos
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=family.eos,
        bos_token=family.bos or None,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = FOLDER.joinpath(f"{template}.jinja").read_text("utf-8")
    return tokenizer


def called(city: str, call_id: str = "call_1") -> dict[str, Any]:
    """A call of the tool, in OpenAI's shape."""
    return {"type": "function", "id": call_id, "function": {"name": "get_weather", "arguments": {"city": city}}}


def system(word: str) -> Message:
    return Message("system", f"Speak of {word}.")


def user(word: str) -> Message:
    return Message("user", f"What of {word}?")


def says(word: str, thought: str = "") -> Message:
    return Message("assistant", f"It is {word}.", reasoning=thought and f"They want {thought}.")


def calls(*cities: str, thought: str = "") -> Message:
    asked = tuple(called(city, f"call_{city}") for city in cities)
    return Message("assistant", "", tool_calls=asked, reasoning=thought and f"They want {thought}.")


def result(city: str, word: str) -> Message:
    return Message("tool", f'{{"sky": "{word}"}}', name="get_weather", tool_call_id=f"call_{city}")


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Looks at the welkin.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "A borough."}},
            "required": ["city"],
        },
    },
}
TOOLS = (TOOL,)

# Every word but those of all templates is unique, so that a test can find it.
CONVERSATIONS: dict[str, Conversation] = {
    "one turn": Conversation((user("amber"), says("birch"))),
    "system message": Conversation((system("acorn"), user("amber"), says("birch"))),
    "several turns": Conversation(
        (user("amber"), says("birch"), user("cedar"), says("dahlia"), user("elder"), says("fennel"))
    ),
    "reasoning in the last turn": Conversation(
        (user("amber"), says("birch"), user("cedar"), says("dahlia", thought="ginger"))
    ),
    "reasoning in every turn": Conversation(
        (
            user("amber"),
            says("birch", thought="hazel"),
            user("cedar"),
            says("dahlia", thought="ginger"),
            user("elder"),
            says("fennel", thought="indigo"),
        )
    ),
    "a call": Conversation((user("amber"), calls("Dover"), result("Dover", "cloudy"), says("birch")), tools=TOOLS),
    "reasoning with a call": Conversation(
        (user("amber"), calls("Dover", thought="hazel"), result("Dover", "cloudy"), says("birch")), tools=TOOLS
    ),
    "two calls at once": Conversation(
        (
            user("amber"),
            calls("Dover", "Calais"),
            result("Dover", "cloudy"),
            result("Calais", "sunny"),
            says("birch"),
        ),
        tools=TOOLS,
    ),
    "two rounds of calls": Conversation(
        (
            user("amber"),
            calls("Dover"),
            result("Dover", "cloudy"),
            calls("Calais"),
            result("Calais", "sunny"),
            says("birch"),
        ),
        tools=TOOLS,
    ),
    "several users with tools": Conversation(
        (
            user("amber"),
            calls("Dover"),
            result("Dover", "cloudy"),
            says("birch"),
            user("cedar"),
            calls("Calais"),
            result("Calais", "sunny"),
            says("dahlia"),
        ),
        tools=TOOLS,
    ),
    "several users with tools and reasoning": Conversation(
        (
            user("amber"),
            calls("Dover", thought="hazel"),
            result("Dover", "cloudy"),
            says("birch", thought="ginger"),
            user("cedar"),
            calls("Calais", thought="indigo"),
            result("Calais", "sunny"),
            says("dahlia", thought="jasmine"),
        ),
        tools=TOOLS,
    ),
}
