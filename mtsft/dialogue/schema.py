"""What a dialogue is: messages in order, and where they were read."""

from dataclasses import dataclass

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a dialogue.

    role: one of ROLES. content: its text, kept to the byte. weight: what each token of it counts in the
    objective if it is a response (role "assistant"); 0 makes it context.
    """

    role: str
    content: str
    weight: float = 1.0

    @property
    def is_response(self) -> bool:
        """Whether the model learns to say this message."""
        return self.role == "assistant" and self.weight > 0


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Messages in order, the name of their dialogue, and where it was read (`file:line`)."""

    id: str
    messages: tuple[Message, ...]
    source: str = ""
