"""What can go wrong, as a tree. Each says when it happens and what to do.

RosterError                 shown as one line, exit status 2
├── BadConfiguration        a setting, a file or an argument is wrong: correct it
├── Unreachable             broker or registry does not answer: start it, or correct its address
├── BadEvent                an event to be published is ill-formed: correct field and value
└── LogDamaged              the log lacks what it must hold (offset lost, marks gone): rebuild
"""


class RosterError(Exception):
    """Base of all errors that a person can mend; the text says how."""


class BadConfiguration(RosterError):
    """A setting, a file or an argument is wrong."""


class Unreachable(RosterError):
    """The broker or the registry does not answer."""


class BadEvent(RosterError):
    """An event to be published is ill-formed; the text names field, value and what is allowed."""


class LogDamaged(RosterError):
    """The log lacks what it must hold."""


class Stopped(Exception):
    """The process was told to end while it waited for something. No failure: nothing is shown."""
