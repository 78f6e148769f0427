# Included by llama-cpp-python's CMakeLists.txt through CMAKE_PROJECT_llama_cpp_INCLUDE: compile llama-common cheaply.
#
# We need llama-common for one function, common_get_device_memory_data, yet it is half of the compiler's work: 50 files that
# each parse a large JSON header. Joined into few and lightly optimised they take a quarter of that. What computes (llama,
# ggml) is left as it is.

function(compile_llama_common_cheaply)
    if(TARGET cpp-httplib)
        target_compile_options(cpp-httplib PRIVATE -O0)
    endif()
    if(NOT TARGET llama-common)
        return()
    endif()
    set_target_properties(llama-common PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 13)
    target_compile_options(llama-common PRIVATE -O1)
    # json.cpp specialises templates that the files joined before it have used already.
    get_target_property(folder llama-common SOURCE_DIR)
    set_source_files_properties("${folder}/json.cpp" TARGET_DIRECTORY llama-common
        PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()

cmake_language(DEFER CALL compile_llama_common_cheaply)
