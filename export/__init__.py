"""Train, export, verify and understand recurrent models. The service never imports this package (it needs torch)."""
