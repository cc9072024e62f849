"""The defaults: what a stage tells upstream where nobody says otherwise, and the options of each group.

Recipes, which say how to train a certain model on certain data, are in the folder `configs/` of the repository;
a wheel has them beside this folder.
"""
