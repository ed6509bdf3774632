"""Classes by name, so that a foreign library is recognised without importing it."""


def class_names(thing: object) -> list[str]:
    """The names of an object's classes along its MRO, each as top-level package and class: `"torch.Linear"`."""
    return [f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(thing).__mro__]
