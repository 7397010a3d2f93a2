"""The forms in which GPT-2 weights come: one file per form, each of which only names, shapes and reads tensors."""
