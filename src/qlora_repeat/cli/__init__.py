"""What people type: one module for each subcommand, and what they share.

A command reads options, calls the layers below and shows what they return. Read
`main` first.
"""
